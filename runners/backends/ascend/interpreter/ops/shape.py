"""Ops that rearrange, cut and join tensors, and those that make constants.

Source: prototypes in array_ops.h, transformation_ops.h, split_combination_ops.h, selection_ops.h; converters.

Results may share memory with inputs, as long as nothing writes it: by-reference ops check what they write.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    ge_dtype,
    ints,
    normal_dim,
    normal_dims,
    one_int,
    require,
    require_same_dtype,
)
from graph_gemma.runners.backends.ascend.interpreter.ops.pointwise import register_unary
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

register_unary({"Identity": lambda x: x, "ZerosLike": torch.zeros_like, "OnesLike": torch.ones_like})


@ge_op("Reshape")
def reshape(x: Tensor, shape: Tensor, *, axis: int = 0, num_axes: int = -1) -> Tensor:
    """x's elements in row-major order under `shape`, of which one size may be -1."""
    require(axis == 0 and num_axes == -1, f"Reshape of axes {axis}, {num_axes}")
    return x.reshape(ints(shape))


@ge_op("Transpose")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Dimension i of the result is dimension perm[i] of x."""
    order = ints(perm)
    require(sorted(normal_dims(order, x.dim())) == list(range(x.dim())), f"perm {order} of a rank {x.dim()} tensor")
    return x.permute(order)


@ge_op("Unsqueeze")
def unsqueeze(x: Tensor, *, axes: list[int]) -> Tensor:
    """Dimensions of size 1 inserted so that they stand at `axes` of the result."""
    for dim in sorted(normal_dims(axes, x.dim() + len(axes))):
        x = x.unsqueeze(dim)
    return x


@ge_op("ExpandDims")
def expand_dims(x: Tensor, axis: Tensor) -> Tensor:
    """A dimension of size 1 inserted at `axis`."""
    return x.unsqueeze(one_int(axis))


@ge_op("Squeeze")
def squeeze(x: Tensor, *, axis: list[int] | None = None) -> Tensor:
    """Dimensions `axis`, which must be of size 1, removed; without `axis`, all of size 1."""
    if not axis:
        return x.squeeze()
    dims = normal_dims(axis, x.dim())
    require(all(x.shape[dim] == 1 for dim in dims), f"Squeeze of dimensions {dims} of {tuple(x.shape)}")
    return x.reshape([size for dim, size in enumerate(x.shape) if dim not in dims])


@ge_op("TensorMove")
def tensor_move(x: Tensor) -> Tensor:
    """A copy of x in memory of its own."""
    return x.clone(memory_format=torch.contiguous_format)


@ge_op("Bitcast")
def bitcast(x: Tensor, *, type: int, keep_dim: bool = False) -> Tensor:
    """x's bytes as another dtype of the same width; widths that change the shape are refused."""
    dtype = ge_dtype(type)
    require(dtype.itemsize == x.dtype.itemsize and not keep_dim, f"Bitcast from {x.dtype} to {dtype}")
    return x.view(dtype)


@ge_op("ConcatV2")
def concat_v2(x: list[Tensor], concat_dim: Tensor, *, N: int) -> Tensor:
    """x0, x1, ... joined along `concat_dim`."""
    return concat_d(x, concat_dim=one_int(concat_dim), N=N)


@ge_op("ConcatD")
def concat_d(x: list[Tensor], *, concat_dim: int, N: int = 1) -> Tensor:
    """x0, x1, ... joined along `concat_dim`."""
    require(len(x) == N, f"{len(x)} inputs, N is {N}")
    require_same_dtype(**{f"x{i}": tensor for i, tensor in enumerate(x)})
    return torch.cat(x, concat_dim)


@ge_op("Pack")
def pack(x: list[Tensor], *, N: int, axis: int = 0) -> Tensor:
    """x0, x1, ... stacked along a new dimension `axis`."""
    require(len(x) == N, f"{len(x)} inputs, N is {N}")
    require_same_dtype(**{f"x{i}": tensor for i, tensor in enumerate(x)})
    return torch.stack(x, axis)


@ge_op("SplitV")
def split_v(x: Tensor, size_splits: Tensor, split_dim: Tensor, *, num_split: int) -> tuple[Tensor, ...] | Tensor:
    """x cut along `split_dim` into pieces of `size_splits`; one size may be -1, the rest."""
    dim = one_int(split_dim)
    sizes = ints(size_splits)
    require(len(sizes) == num_split and sizes.count(-1) <= 1, f"sizes {sizes}, num_split {num_split}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.shape[dim] - sum(sizes) - 1
    pieces = x.split(sizes, dim)
    return pieces[0] if num_split == 1 else pieces


@ge_op("Split")
def split(split_dim: Tensor, x: Tensor, *, num_split: int) -> tuple[Tensor, ...] | Tensor:
    """x cut along `split_dim` into `num_split` equal pieces."""
    dim = one_int(split_dim)
    require(x.shape[dim] % num_split == 0, f"size {x.shape[dim]} in {num_split} equal pieces")
    pieces = x.split(x.shape[dim] // num_split, dim)
    return pieces[0] if num_split == 1 else pieces


@ge_op("Slice")
def slice_(x: Tensor, offsets: Tensor, size: Tensor) -> Tensor:
    """The box of `size` (-1: to the end) at `offsets`."""
    for dim, (start, length) in enumerate(zip(ints(offsets), ints(size), strict=True)):
        length = x.shape[dim] - start if length == -1 else length
        require(start >= 0 and start + length <= x.shape[dim], f"slice {start}+{length} of {x.shape[dim]}")
        x = x.narrow(dim, start, length)
    return x


@ge_op("StridedSliceV2")
def strided_slice_v2(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    axes: Tensor | None = None,
    strides: Tensor | None = None,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """x[begin:end:stride] along `axes` (default: the first ones); ends are clamped as in Python. No masks."""
    masks = (begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    require(masks == (0, 0, 0, 0, 0), "StridedSliceV2 with a mask")
    starts, stops = ints(begin), ints(end)
    dims = list(range(len(starts))) if axes is None else normal_dims(ints(axes), x.dim())
    steps = [1] * len(starts) if strides is None else ints(strides)
    require(all(step > 0 for step in steps), f"strides {steps}")
    index = [slice(None)] * x.dim()
    for dim, start, stop, step in zip(dims, starts, stops, steps, strict=True):
        index[dim] = slice(start, stop, step)
    return x[tuple(index)]


@ge_op("BroadcastTo")
def broadcast_to(x: Tensor, shape: Tensor) -> Tensor:
    """x broadcast to `shape`; -1 keeps a dimension."""
    return x.expand(ints(shape))


@ge_op("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """x and `shape` broadcast against each other (ONNX Expand)."""
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


@ge_op("Tile")
def tile(x: Tensor, multiples: Tensor) -> Tensor:
    """x repeated `multiples[i]` times along dimension i."""
    return x.repeat(ints(multiples))


@ge_op("ReverseV2")
def reverse_v2(x: Tensor, axis: Tensor) -> Tensor:
    """x with the dimensions `axis` in reverse order."""
    return x.flip(ints(axis))


@ge_op("Shape")
def shape_of(x: Tensor, *, dtype: int = 3) -> Tensor:
    """x's sizes as a vector of GE dtype `dtype`."""
    return torch.tensor(x.shape, dtype=ge_dtype(dtype))


@ge_op("Fill")
def fill(dims: Tensor, value: Tensor) -> Tensor:
    """A tensor of shape `dims` whose elements are all `value`."""
    require(value.numel() == 1, "value must be one element")
    return value.reshape(()).expand(ints(dims)).clone()


@ge_op("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... below `limit`; the dtype is the widest of the three, all integers or all floats."""
    require(start.is_floating_point() == limit.is_floating_point() == delta.is_floating_point(), "mixed dtypes")
    dtype = torch.promote_types(torch.promote_types(start.dtype, limit.dtype), delta.dtype)
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)


@ge_op("Tril")
def tril(x: Tensor, *, diagonal: int = 0) -> Tensor:
    """The elements on and below the diagonal; zeros elsewhere."""
    return x.tril(diagonal)


@ge_op("Triu")
def triu(x: Tensor, *, diagonal: int = 0) -> Tensor:
    """The elements on and above the diagonal; zeros elsewhere."""
    return x.triu(diagonal)


@ge_op("Unpack")
def unpack(x: Tensor, *, num: int, axis: int = 0) -> tuple[Tensor, ...] | Tensor:
    """x's slices along `axis`, which has size `num`."""
    dim = normal_dim(axis, x.dim())
    require(x.shape[dim] == num, f"size {x.shape[dim]}, num {num}")
    pieces = x.unbind(dim)
    return pieces[0] if num == 1 else pieces
