"""The gated activation: GeGluV2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ascend.ops.op import AscendOp
from graph_gemma.graph_model.ascend.work import FUNCTION, per_element


def _geglu(x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    left, right = x.chunk(2, dim)
    gate, other = (left, right) if activate_left else (right, left)
    activated = F.gelu(gate.float(), approximate="tanh" if approximate else "none")
    return (activated * other.float()).to(x.dtype), activated.to(x.dtype)


OPS = (
    # Tanh of a cubic, and two products
    AscendOp("npu::npu_geglu", "GeGluV2", work=per_element(FUNCTION + 6), cpu=_geglu),
)
