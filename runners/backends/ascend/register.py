"""Register the Ascend ops' converters with torchair and their CPU kernels with torch."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from graph_gemma.graph_model.ascend.ops import BY_GE_TYPE, OPS

_LIBRARIES: list[torch.library.Library] = []


def register_converters() -> None:
    """Register the converters to GE with torchair, which must be loaded; a second call changes nothing."""
    if hasattr(torch.ops.ascend.linear.default, "_ge_converter"):
        return
    # torch.ops.air.npu_fused_infer_attention_score, whose lengths are tensors, exists only once this is imported.
    import torchair.ops._npu_fused_infer_attention_score  # noqa: F401
    from torchair import register_fx_node_ge_converter
    from torchair._ge_concrete_graph import graph_pass

    for op in OPS:
        if op.convert is not None:
            overload = reduce(getattr, op.torch_name.split("::"), torch.ops).default
            register_fx_node_ge_converter(overload)(op.convert)
    # torchair drops the copies around ops that write by reference if it knows which output is which input.
    references_of = graph_pass._get_output_to_input_ref_idx

    def with_ours(op: Any) -> dict[int, int]:
        ours = BY_GE_TYPE.get(op.type)
        return dict(ours.in_place) if ours is not None and ours.in_place else references_of(op)

    graph_pass._get_output_to_input_ref_idx = with_ours


def register_kernels() -> None:
    """Give the ops CPU kernels, so that a graph with selected kernels runs anywhere.

    torch_npu and torchair must be loaded; a second call changes nothing. Sums are in float32 and results are rounded
    once; where the chip rounds in between, the interpreter does, and the bound of a comparison of both covers it.
    """
    if _LIBRARIES:
        return
    libraries = {name: torch.library.Library(name, "IMPL") for name in ("npu", "air", "ascend")}
    _LIBRARIES.extend(libraries.values())
    for op in OPS:
        if op.cpu is not None:
            namespace, name = op.torch_name.split("::")
            # torchair gives its own op a CPU kernel that only raises.
            libraries[namespace].impl(name, op.cpu, "CPU", allow_override=namespace == "air")
