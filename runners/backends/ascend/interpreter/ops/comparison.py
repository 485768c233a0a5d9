"""Comparison, logic and selection. Source: prototypes in elewise_calculation_ops.h and selection_ops.h."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import require, require_dtype, require_same_dtype
from graph_gemma.runners.backends.ascend.interpreter.ops.pointwise import register_binary, register_unary
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

register_binary(
    {
        "Equal": torch.eq,
        "NotEqual": torch.ne,
        "Less": torch.lt,
        "LessEqual": torch.le,
        "Greater": torch.gt,
        "GreaterEqual": torch.ge,
    }
)
register_binary({"LogicalAnd": torch.logical_and, "LogicalOr": torch.logical_or}, torch.bool)
register_unary({"LogicalNot": torch.logical_not}, torch.bool)


@ge_op("Select")
def select(condition: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """x1 where the condition is true, else x2."""
    return select_v2(condition, x1, x2)


@ge_op("SelectV2")
def select_v2(condition: Tensor, then: Tensor, else_: Tensor) -> Tensor:
    """`then` where the condition is true, else `else`; broadcasts."""
    require_dtype("condition", condition, torch.bool)
    require_same_dtype(then=then, otherwise=else_)
    return torch.where(condition, then, else_)


@ge_op("MaskedFill")
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """x with `value` (one element, x's dtype) where `mask` is true."""
    require_dtype("mask", mask, torch.bool)
    require_same_dtype(x=x, value=value)
    require(value.numel() == 1, "value must be one element")
    return torch.where(mask, value, x)
