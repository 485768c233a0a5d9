"""Elementwise arithmetic and conversion.

On the vector unit fp16 arithmetic rounds once per op; bf16 is widened to fp32, computed, and rounded once. torch's
CPU kernels do the same.
Source: prototypes in elewise_calculation_ops.h; ops-math.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    FLOATS,
    ge_dtype,
    require,
    require_dtype,
    require_same_dtype,
)
from graph_gemma.runners.backends.ascend.interpreter.ops.pointwise import (
    register_binary,
    register_rounded_once,
    register_unary,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)

# Maximum and Minimum are NaN if either is; integer Div has a rounding of its own; Sqrt is NaN below 0.
register_binary(
    {
        "Add": torch.add,
        "AddV2": torch.add,
        "Sub": torch.sub,
        "Mul": torch.mul,
        "Maximum": torch.maximum,
        "Minimum": torch.minimum,
    }
)
register_binary({"RealDiv": torch.div, "Div": torch.div}, *FLOATS)
register_unary({"Neg": torch.neg, "Abs": torch.abs, "Floor": torch.floor, "Square": lambda x: x * x})
register_unary({"Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal}, *FLOATS)
register_rounded_once({"Rsqrt": torch.rsqrt})


@ge_op("Cast")
def cast(x: Tensor, *, dst_type: int, truncate: bool = False) -> Tensor:
    """x converted to GE dtype `dst_type`.

    Float to float rounds to nearest even; beyond the largest number it becomes infinite (INF_NAN mode). Float to
    integer truncates toward zero; values outside the integer's range, and NaN, are undefined on the chip and refused.
    """
    dtype = ge_dtype(dst_type)
    if x.is_floating_point() and dtype in _INTEGERS and x.numel():
        limits = torch.iinfo(dtype)
        wide = x.double().trunc()
        if not bool(((wide >= limits.min) & (wide <= limits.max)).all()):
            raise GeGraphError(f"Cast of a value outside the range of {dtype}, or of NaN, is undefined on the chip")
    return x.to(dtype)


@ge_op("FloorDiv")
def floor_div(x1: Tensor, x2: Tensor) -> Tensor:
    """floor(x1 / x2); an integer divisor of 0 is undefined on the chip and refused."""
    require_same_dtype(x1=x1, x2=x2)
    _refuse_zero_divisor(x2)
    return torch.floor_divide(x1, x2)


@ge_op("FloorMod")
def floor_mod(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 - floor(x1 / x2) * x2: the sign of x2; an integer divisor of 0 is refused."""
    require_same_dtype(x1=x1, x2=x2)
    _refuse_zero_divisor(x2)
    return torch.remainder(x1, x2)


@ge_op("Muls")
def muls(x: Tensor, *, value: float) -> Tensor:
    """x times a scalar attribute. The scalar is fp32; a 16-bit x is widened and rounded once, after the product."""
    require_dtype("x", x, *FLOATS, torch.int32, torch.int64)
    if x.is_floating_point():
        return (x.float() * value).to(x.dtype)
    require(value == int(value), f"integer x times {value}")
    return x * int(value)


@ge_op("Adds")
def adds(x: Tensor, *, value: float) -> Tensor:
    """x plus a scalar attribute, like Muls."""
    require_dtype("x", x, *FLOATS, torch.int32, torch.int64)
    if x.is_floating_point():
        return (x.float() + value).to(x.dtype)
    require(value == int(value), f"integer x plus {value}")
    return x + int(value)


@ge_op("Axpy")
def axpy(x1: Tensor, x2: Tensor, *, alpha: float) -> Tensor:
    """x1 + alpha * x2; 16-bit inputs are widened and rounded once."""
    require_same_dtype(x1=x1, x2=x2)
    if x1.is_floating_point():
        return (x1.float() + alpha * x2.float()).to(x1.dtype)
    require(alpha == int(alpha), f"integers with alpha={alpha}")
    return x1 + int(alpha) * x2


@ge_op("Pow")
def power(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 ** x2 with broadcasting."""
    require_same_dtype(x1=x1, x2=x2)
    if x1.is_floating_point():
        return torch.pow(x1.float(), x2.float()).to(x1.dtype)
    return torch.pow(x1, x2)


@ge_op("Round")
def round_even(x: Tensor, *, decimals: int = 0) -> Tensor:
    """Nearest integer, ties to even."""
    require(decimals == 0, f"Round to {decimals} decimals")
    return x.round()


@ge_op("ClipByValue", "ClipByValueV2")
def clip_by_value(x: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    """x limited to [min, max]."""
    require_same_dtype(x=x, min=clip_value_min, max=clip_value_max)
    return torch.clamp(x, clip_value_min, clip_value_max)


def _refuse_zero_divisor(divisor: Tensor) -> None:
    if not divisor.is_floating_point() and bool((divisor == 0).any()):
        raise GeGraphError("integer division by 0 is undefined on the chip")
