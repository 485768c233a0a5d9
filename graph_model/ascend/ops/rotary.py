"""Rotary embedding: RotaryMul."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.ops.op import AscendOp, shape_of
from graph_gemma.graph_model.ascend.work import per_element
from graph_gemma.graph_model.chips.chip import Chip


def fused_rotary(chip: Chip, head_dim: int) -> bool:
    """Whether RotaryMul takes the head_dim (a multiple of 64); otherwise rotary embedding is decomposed."""
    return head_dim % 64 == 0 and head_dim <= (chip.limits("RotaryMul").max_head_dim or head_dim)


def _rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    assert rotary_mode == "half"
    assert rotate is None
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _check(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    head_dim = shape_of(inputs, "x")[-1]
    if not fused_rotary(chip, head_dim):
        most = chip.limits(node.type).max_head_dim
        raise GeGraphError(f"RotaryMul takes multiples of 64 up to {most}, head_dim is {head_dim}")


OPS = (
    # Two products, an addition, a sign
    AscendOp("npu::npu_rotary_mul", "RotaryMul", work=per_element(4), cpu=_rotary_mul, check=_check),
)
