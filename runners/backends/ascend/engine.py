"""Run a serialized GE graph on torchair's engine: on the device, or on the stand-in by the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class EngineGraph:
    """A ge.proto.ModelDef that the engine has compiled; torch_npu must be loaded (`standin.load`).

    inputs: their number. options: the compile options that torchair made for the graph, as `LoweredStep.options`
    gives them; without them, those of a graph whose inputs are neither weights nor frozen.
    """

    def __init__(self, serialized: bytes, inputs: int, options: Mapping[str, str] | None = None) -> None:
        from torchair.core._backend import initialize_graph_engine
        from torchair.ge._ge_graph import GeGraph as TorchairGraph

        self._graph: Any = TorchairGraph(serialized_model_def=serialized)
        local, globally = compile_options()
        initialize_graph_engine(globally)
        own = {"frozenInput": ",".join("0" for _ in range(inputs)), "ge.exec.allTensorNotEmpty": "1"}
        self._graph.load(dict(options) if options is not None else {**local, **own})
        self._graph.compile()

    def run(self, inputs: Sequence[Tensor], assigned: Mapping[int, int] | None = None) -> list[Tensor]:
        """The graph's outputs for tensors on device npu, in the order of the Data nodes' indices.

        assigned: outputs that are written over inputs, and which.
        """
        if not assigned:
            return list(self._graph.run(list(inputs)))
        targets: list[Tensor | None] = [None] * len(self._graph.attr["_output_dtypes"].list.i)
        for output, index in assigned.items():
            targets[output] = inputs[index]
        return list(self._graph.run(list(inputs), targets))


def compiler_config() -> Any:
    """torchair's settings for lowered steps; torch_npu must be loaded."""
    from torchair import CompilerConfig

    config = CompilerConfig()
    config.mode = "max-autotune"
    config.experimental_config.frozen_parameter = True
    config.experimental_config.topology_sorting_strategy = "StableRDFS"
    # With it, torchair loses transposes in some chains of views.
    config.experimental_config.enable_view_optimize = False
    return config


def compile_options() -> tuple[dict[str, str], dict[str, str]]:
    """What a graph and the engine as a whole are compiled with, before torchair adds what depends on the graph."""
    local, globally = compiler_config().as_dict()
    return dict(local), {**globally, "ge.exec.staticMemoryPolicy": "2", "ge.opSelectImplmode": "high_precision"}


def model_def() -> Any:
    """The message type of a serialized graph, ge.proto.ModelDef; torch_npu must be loaded."""
    from torchair._ge_concrete_graph.ge_ir_pb2 import ModelDef

    return ModelDef


def describe_device() -> dict[str, str]:
    """Which device and which CANN this is; torch_npu must be loaded over CANN."""
    import torch_npu
    from torch_npu.npu.utils import get_cann_version

    return {"device": torch_npu.npu.get_device_name(), "cann": get_cann_version("CANN")}
