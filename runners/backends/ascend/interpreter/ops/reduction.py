"""Reductions, softmax, search and sorting.

Sums of 16-bit inputs accumulate in fp32 and are rounded once. Source: prototypes in reduce_ops.h, nn_norm_ops.h,
math_ops.h, sort_ops.h; converters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    FLOATS,
    HALVES,
    ge_dtype,
    ints,
    normal_dims,
    one_int,
    require,
    require_dtype,
    require_same_dtype,
    require_value,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op


@ge_op("ReduceMean")
def reduce_mean(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """Mean over `axes`, in fp32, rounded once to x's dtype."""
    require_dtype("x", x, *FLOATS)
    if not axes.numel() and noop_with_empty_axes:
        return x
    return x.float().mean(_dims(axes, x), keep_dims).to(x.dtype)


@ge_op("ReduceSum")
def reduce_sum(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """Sum over `axes`; 16-bit floats in fp32, rounded once; integers keep their dtype."""
    dims = _dims(axes, x)
    if x.dtype in HALVES:
        return x.float().sum(dims, keep_dims).to(x.dtype)
    return x.sum(dims, keep_dims, dtype=x.dtype)


@ge_op("ReduceMax")
def reduce_max(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """Largest element over `axes`."""
    return x.amax(_dims(axes, x), keep_dims)


@ge_op("ReduceMin")
def reduce_min(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """Smallest element over `axes`."""
    return x.amin(_dims(axes, x), keep_dims)


@ge_op("ReduceAny")
def reduce_any(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """Whether any element over `axes` is true."""
    require_dtype("x", x, torch.bool)
    return x.any(_dims(axes, x), keep_dims)


@ge_op("ReduceAll")
def reduce_all(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """Whether all elements over `axes` are true."""
    require_dtype("x", x, torch.bool)
    return x.all(_dims(axes, x), keep_dims)


@ge_op("SoftmaxV2")
def softmax_v2(x: Tensor, *, axes: list[int], half_to_float: bool = False) -> Tensor:
    """Softmax over one axis in fp32, rounded once to x's dtype, or left fp32 with half_to_float."""
    require_dtype("x", x, *FLOATS)
    require(len(axes) == 1, f"softmax over axes {axes}")
    result = torch.softmax(x.float(), axes[0])
    return result if half_to_float else result.to(x.dtype)


@ge_op("LogSoftmaxV2")
def log_softmax_v2(logits: Tensor, *, axes: list[int]) -> Tensor:
    """Log-softmax over one axis in fp32, rounded once to the input's dtype."""
    require_dtype("logits", logits, *FLOATS)
    require(len(axes) == 1, f"log-softmax over axes {axes}")
    return torch.log_softmax(logits.float(), axes[0]).to(logits.dtype)


@ge_op("ArgMaxV2")
def arg_max_v2(x: Tensor, dimension: Tensor, *, dtype: int = 9) -> Tensor:
    """Position of the largest element along `dimension`; the first of equal ones.

    Of nothing but NaN it is some position, on the chip as here. NaN among numbers is refused.
    """
    dim = one_int(dimension)
    _refuse_nan(x.masked_fill(x.isnan().all(dim, True), 0.0) if x.is_floating_point() else x)
    return x.argmax(dim).to(ge_dtype(dtype))


@ge_op("ArgMaxWithValue")
def arg_max_with_value(x: Tensor, *, dimension: int, keep_dims: bool = False) -> tuple[Tensor, Tensor]:
    """Position (int32, the first of equal ones) and value of the largest element along `dimension`."""
    _refuse_nan(x)
    indices = x.argmax(dimension, keep_dims)
    return indices.to(torch.int32), x.amax(dimension, keep_dims)


@ge_op("TopKV2", "TopK")
def top_k_v2(
    x: Tensor,
    k: Tensor,
    *,
    sorted: bool = True,
    dim: int = -1,
    largest: bool = True,
    indices_dtype: int = 3,
    sort_policy: int = 1,
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along `dim`, in order, and their positions (int32).

    Of equal elements the one at the lower position comes first. torchair writes sort_policy 1, no other is known.
    """
    require_value("sorted", sorted, True)
    require_value("sort_policy", sort_policy, 1)
    _refuse_nan(x)
    values, indices = x.sort(dim=dim, descending=largest, stable=True)
    count = one_int(k)
    return values.narrow(dim, 0, count), indices.narrow(dim, 0, count).to(ge_dtype(indices_dtype))


@ge_op("Sort")
def sort(
    x: Tensor, *, axis: int = -1, descending: bool = False, stable: bool = False, y2_dtype: int = 3
) -> tuple[Tensor, Tensor]:
    """x sorted along `axis`, and the positions the elements came from (int32). Equal elements keep their order."""
    _refuse_nan(x)
    values, indices = x.sort(dim=axis, descending=descending, stable=True)
    return values, indices.to(ge_dtype(y2_dtype))


@ge_op("Cumsum")
def cumsum(x: Tensor, axis: Tensor, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along `axis`; 16-bit floats in fp32, rounded once."""
    require(not exclusive and not reverse, "exclusive or reverse Cumsum")
    dim = one_int(axis)
    return x.float().cumsum(dim).to(x.dtype) if x.dtype in HALVES else x.cumsum(dim, dtype=x.dtype)


@ge_op("SearchSorted")
def search_sorted(
    sorted_sequence: Tensor, values: Tensor, sorter: Tensor | None = None, *, dtype: int = 9, right: bool = False
) -> Tensor:
    """How many elements of the last dimension of `sorted_sequence` are below (right: not above) each value."""
    require(sorter is None, "SearchSorted with a sorter")
    require_same_dtype(sorted_sequence=sorted_sequence, values=values)
    return torch.searchsorted(sorted_sequence.contiguous(), values.contiguous(), right=right).to(ge_dtype(dtype))


def _dims(axes: Tensor, x: Tensor) -> list[int]:
    """What a reduction over no axes means differs between versions of the prototypes."""
    require(axes.numel() > 0 or x.dim() == 0, "a reduction over no axes")
    return normal_dims(ints(axes), x.dim())


def _refuse_nan(x: Tensor) -> None:
    if x.is_floating_point() and bool(x.isnan().any()):
        raise GeGraphError("NaN among values to be ordered: the chip's order is undefined")
