"""Replace the functions through which torchair reaches the graph engine, by the GE interpreter."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES, GeGraphError, read_graph
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.backends.ascend.interpreter.memory import host_view


def replace_seam(soc: Chip) -> None:
    """Let torchair hand its graphs to the GE interpreter, as `soc` would take them; torchair must be imported."""
    from torchair._ge_concrete_graph import compat_ir, fx2ge_converter
    from torchair.core import _backend

    _backend.initialize_graph_engine = _no_engine
    fx2ge_converter.initialize_graph_engine = _no_engine
    compat_ir.is_cann_compat = _compatible
    _backend.TorchNpuGraph = functools.partial(InterpretedGraph, soc)


def _no_engine(global_compile_options: dict[str, str] | None = None) -> None:
    """Initialize nothing: there is no engine."""


def _compatible(
    optype: str, runtime_optional_inputs: tuple[str, ...] = (), runtime_optional_attrs: tuple[str, ...] = ()
) -> str:
    """No CANN, so no op prototypes to compare with: the interpreter refuses what it does not know."""
    return ""


class InterpretedGraph:
    """What torchair takes for the engine's graph: same methods, executed by the GE interpreter.

    Loading raises GeGraphError if the graph is illegal on the SoC or unknown to the interpreter.
    """

    def __init__(self, soc: Chip, name: str = "") -> None:
        self.soc = soc
        self.name = name
        self.program: Program | None = None
        self.options: dict[str, str] = {}
        self._output_dtypes: list[torch.dtype] = []

    def load(self, ge_graph: Any, options: dict[str, str] | None = None) -> None:
        """ge_graph: torchair's wrapper of a ge.proto.GraphDef, complete but for its inputs' values."""
        self.options = dict(options or {})
        graph = read_graph(ge_graph._proto)
        self._output_dtypes = [GE_DTYPES[dtype] for dtype in graph.attrs["_output_dtypes"]]
        check_graph(graph, self.soc)
        self.program = Program(graph)

    def compile(self) -> None:
        """Do nothing: loading has compiled it."""

    def auto_tune(self, example_inputs: Sequence[Tensor] = (), stream: object = None) -> None:
        raise GeGraphError("the CANN stand-in has no kernels to tune; leave torchair's aoe_mode unset")

    def run(
        self, inputs: Sequence[Tensor], assigned_outputs: Sequence[Tensor | None] = (), stream: object = None
    ) -> list[Tensor]:
        """Execute over host views of `inputs`; by-reference inputs and assigned outputs are written in place."""
        if self.program is None:
            raise GeGraphError(f"graph {self.name} was run before it was loaded")
        results = self.program.run([host_view(tensor) for tensor in inputs])
        if len(results) != len(self._output_dtypes):
            raise GeGraphError(
                f"graph {self.name} has {len(results)} outputs, {len(self._output_dtypes)} were declared"
            )
        targets = list(assigned_outputs) or [None] * len(results)
        # Assigned outputs are inputs of the graph: they are written only after every result has been copied out.
        outputs = [
            _to_device(result, dtype) if target is None else result.clone()
            for result, target, dtype in zip(results, targets, self._output_dtypes, strict=True)
        ]
        for index, target in enumerate(targets):
            if target is not None:
                host_view(target).copy_(outputs[index].view(target.shape))
                outputs[index] = target
        return outputs


def _to_device(result: Tensor, dtype: torch.dtype) -> Tensor:
    if result.dtype != dtype:
        raise GeGraphError(f"an output is {result.dtype}, declared {dtype}")
    output = torch.empty(result.shape, dtype=dtype, device="npu")
    host_view(output).copy_(result)
    return output
