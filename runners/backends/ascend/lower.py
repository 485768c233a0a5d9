"""Lower a ModelGraph with selected kernels to a GE graph, by torchair, without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, read_graph
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.engine import compiler_config
from graph_gemma.runners.backends.ascend.provenance import Target, annotate, note_target
from graph_gemma.runners.backends.ascend.stored_step import LoadedStep, StepInput, StoredStep, as_read, compile_options

aten = torch.ops.aten
_VIEWS = (aten.reshape.default, aten.view.default)


@dataclass
class LoweredStep:
    """torchair's graph of a step."""

    concrete: Any  # torchair's object, a function of the placeholders' tensors on the device
    # The functional FX graph that torchair lowered. Its nodes' names are in the GE graph, and each that came from a
    # node of the step carries in meta["custom"] that node's name, as "origin", and its "layer".
    module: fx.GraphModule
    views: dict[int, tuple[int, ...]]  # the shape in which the graph reads a cache, by its placeholder's position
    target: Target  # the chip, and device or stand-in; the graph itself says it too

    @property
    def pbtxt(self) -> str:
        """torchair's own text of the graph, under a comment that says what it was lowered for and on what."""
        from torchair._ge_concrete_graph.utils import convert_to_pbtxt

        return f"# soc {self.target.soc}\n# {self.target.lowered}\n{convert_to_pbtxt(self.concrete.graph)}"

    @property
    def graph(self) -> GeGraph:
        """The graph that the engine gets."""
        return read_graph(self.concrete.graph._proto)

    @property
    def serialized(self) -> bytes:
        """The graph as a serialized ge.proto.ModelDef."""
        return bytes(self.concrete.graph.SerializeToString())

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        """Where the graph's inputs come from, by the input's index."""
        functions = [info.func for info in self.concrete._input_info_list]
        unknown = [type(function).__name__ for function in functions if type(function).__name__ != "_TensorInput"]
        assert not unknown, f"inputs that are not tensors as they are given: {unknown}"
        positions = [function.fx_input_idx for function in functions]
        return tuple(StepInput(position, self.views.get(position)) for position in positions)

    @property
    def output_order(self) -> tuple[int, ...]:
        """The position among the graph's outputs of each of the step's."""
        outputs = self.concrete._fx_outputs_mapping
        assert sorted(outputs) == list(range(len(self.concrete._fx_outputs))), "outputs that the graph does not compute"
        return tuple(outputs[index] for index in sorted(outputs))

    @property
    def options(self) -> dict[str, str]:
        """What torchair lets the engine compile this graph with."""
        return compile_options(self.concrete)

    def stored(self) -> StoredStep:
        """The step as data, which can be written and loaded."""
        assigned = tuple(self.concrete._graph_output_ref_input.items())
        return StoredStep(self.serialized, self.options, self.inputs, self.output_order, assigned)

    def load(self) -> LoadedStep:
        """Hand the graph to the engine, which compiles it."""
        return self.stored().load()

    def as_read(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The graph's inputs among the placeholders' tensors."""
        return as_read(self.inputs, arguments)


def lower(graph: ModelGraph) -> LoweredStep:
    """The GE graph of a step, on fake tensors; torch_npu must be loaded (`standin.load`).

    Weights are frozen parameters: the engine may rearrange them when it compiles. Caches are written by reference.
    """
    copy = graph.copy()
    views = _read_caches_in_one_shape(copy)
    _create_on_device(copy)
    copy.module.recompile()
    placeholders = [node for node in copy.graph.nodes if node.op == "placeholder"]
    fake_mode = FakeTensorMode()
    fakes = []
    with fake_mode:
        for node in placeholders:
            value = node.meta["val"]
            fakes.append(torch.empty(views_shape(node), dtype=value.dtype, device="npu"))
            if node.meta["kind"] == "weight":
                fakes[-1]._torchair_is_parameter = True  # type: ignore[attr-defined]
    for node in copy.graph.nodes:
        node.meta["custom"] = {"origin": node.name, "layer": node.meta.get("layer", "")}
    # The mode is left on for torchair, which infers shapes with tensors that it would allocate otherwise.
    with fake_mode:
        concrete, module = lower_module(copy.module, fakes, compiler_config(), {aten.rsub.Scalar: _subtract_from})
    lowered = LoweredStep(concrete, module, views, _target())
    annotate(concrete.graph._proto, module, graph, [item.placeholder for item in lowered.inputs])
    note_target(concrete.graph._proto, lowered.target)
    return lowered


def lower_module(
    module: fx.GraphModule, fakes: Sequence[Tensor], config: Any, decompositions: Mapping[Any, Any] | None = None
) -> tuple[Any, fx.GraphModule]:
    """torchair's object of a graph, and the functional graph of aten ops that it was made from.

    fakes: the placeholders' values, on device npu, of the fake mode that must be on. config: torchair's
    CompilerConfig. decompositions: of ops, besides torchair's own.
    """
    from torchair import get_compiler
    from torchair.npu_fx_compiler import _get_merged_decompositions

    functional = torch.func.functionalize(lambda *arguments: list(fx.Interpreter(module).run(*arguments)))
    table = {**_get_merged_decompositions(config), **(decompositions or {})}
    with torch.no_grad():
        with preserve_node_meta():
            traced = make_fx(functional, table, tracing_mode="fake")(*fakes)
        return get_compiler(config)(traced, list(fakes)).runner, traced


def _target() -> Target:
    soc = standin.loaded_soc()
    assert soc is not None, "torch_npu is loaded by standin.load"
    return Target(soc.name, standin.BANNER if standin.is_standin() else "on the device")


def _subtract_from(x: Tensor, number: float, alpha: float = 1) -> Tensor:
    """number - alpha * x; torchair would take Sxpy, whose integer form no op document describes."""
    return torch.neg(x * alpha if alpha != 1 else x) + number


def views_shape(placeholder: fx.Node) -> tuple[int, ...]:
    """The shape in which a prepared graph reads a placeholder."""
    return placeholder.meta.get("read_as", tuple(placeholder.meta["val"].shape))


def _read_caches_in_one_shape(graph: ModelGraph) -> dict[int, tuple[int, ...]]:
    """Where a cache is read under one other shape only, let the placeholder have that shape.

    torchair keeps a by-reference write free of copies only if it writes an input itself, not a view of it.
    """
    shapes = {}
    for index, node in enumerate(n for n in graph.graph.nodes if n.op == "placeholder"):
        users = list(node.users)
        if node.meta["kind"] != "cache" or len(users) != 1 or users[0].target not in _VIEWS:
            continue
        view = users[0]
        view.replace_all_uses_with(node)
        graph.graph.erase_node(view)
        node.meta["read_as"] = shapes[index] = tuple(view.meta["val"].shape)
    return shapes


def _create_on_device(graph: ModelGraph) -> None:
    """Tensors that the graph itself makes, such as ranges, are made on the device."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("npu")}
