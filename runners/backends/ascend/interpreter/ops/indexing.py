"""Gathers and the scatters that return a new tensor. Source: prototypes in selection_ops.h; converters.

On the chip an index outside its dimension is undefined; here it is an error. Negative indices are refused unless the
node says negative_index_support.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    one_int,
    require,
    require_dtype,
    require_indices,
    require_same_dtype,
    require_value,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

_INDEX = (torch.int32, torch.int64)


@ge_op("GatherV2")
def gather_v2(
    x: Tensor,
    indices: Tensor,
    axis: Tensor,
    *,
    batch_dims: int = 0,
    is_preprocessed: bool = False,
    negative_index_support: bool = False,
) -> Tensor:
    """x's slices along `axis` at `indices`: shape x[:axis] + indices + x[axis+1:]."""
    require_value("is_preprocessed", is_preprocessed, False)
    dim = one_int(axis) % x.dim()
    return _gather(x, indices, dim, batch_dims, negative_index_support)


@ge_op("Gather")
def gather(
    x: Tensor,
    indices: Tensor,
    *,
    validate_indices: bool = True,
    batch_dims: int = 0,
    is_preprocessed: bool = False,
    negative_index_support: bool = False,
) -> Tensor:
    """x's slices along dimension 0 at `indices`."""
    require_value("validate_indices", validate_indices, True)
    require_value("is_preprocessed", is_preprocessed, False)
    return _gather(x, indices, 0, batch_dims, negative_index_support)


def _gather(x: Tensor, indices: Tensor, dim: int, batch_dims: int, negative: bool) -> Tensor:
    require(batch_dims == 0, "batched gathers")
    require_dtype("indices", indices, *_INDEX)
    if negative:
        indices = torch.where(indices < 0, indices + x.shape[dim], indices)
    require_indices("indices", indices, x.shape[dim])
    taken = x.index_select(dim, indices.reshape(-1))
    return taken.reshape(x.shape[:dim] + indices.shape + x.shape[dim + 1 :])


@ge_op("GatherElements")
def gather_elements(x: Tensor, index: Tensor, *, dim: int = 0) -> Tensor:
    """y[..., i, ...] = x[..., index[..., i, ...], ...] along `dim`."""
    require_dtype("index", index, *_INDEX)
    require_indices("index", index, x.shape[dim])
    return x.gather(dim, index.long())


@ge_op("GatherNd")
def gather_nd(x: Tensor, indices: Tensor, *, negative_index_support: bool = False) -> Tensor:
    """x's slices at the coordinates in the last dimension of `indices`."""
    require_dtype("indices", indices, *_INDEX)
    require(not negative_index_support, "negative indices")
    coordinates = indices.unbind(-1)
    for dim, values in enumerate(coordinates):
        require_indices(f"indices[..., {dim}]", values, x.shape[dim])
    return x[tuple(values.long() for values in coordinates)]


@ge_op("IndexByTensor")
def index_by_tensor(x: Tensor, indices: list[Tensor], *, indices_mask: list[int]) -> Tensor:
    """x indexed by tensors along the leading dimensions whose `indices_mask` is 1, as in x[:, i, j].

    Negative indices count from the end, as in torch.
    """
    require(sum(indices_mask) == len(indices), f"{len(indices)} indices, mask {indices_mask}")
    remaining = iter(indices)
    index: list[slice | Tensor] = []
    for dim, used in enumerate(indices_mask):
        if not used:
            index.append(slice(None))
            continue
        values = next(remaining)
        require_dtype("indices", values, *_INDEX)
        values = torch.where(values < 0, values + x.shape[dim], values)
        require_indices("indices", values, x.shape[dim])
        index.append(values.long())
    return x[tuple(index)]


@ge_op("ScatterElements")
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """data with data[..., indices[..., i, ...], ...] = updates[..., i, ...] along `axis`, as a new tensor.

    Two updates of one element are undefined on the chip and refused.
    """
    require(reduction == "none", f"reduction {reduction!r}")
    require_dtype("indices", indices, *_INDEX)
    require_same_dtype(data=data, updates=updates)
    require_indices("indices", indices, data.shape[axis])
    repeated = indices.sort(axis).values.diff(dim=axis) == 0
    require(not bool(repeated.any()), "two updates of one element are undefined on the chip")
    return data.scatter(axis, indices.long(), updates)


@ge_op("OneHot")
def one_hot(x: Tensor, depth: Tensor, on_value: Tensor, off_value: Tensor, *, axis: int = -1) -> Tensor:
    """`on_value` where the position along a new dimension `axis` of size `depth` equals x, else `off_value`."""
    positions = torch.arange(one_int(depth), dtype=x.dtype)
    hot = (x.unsqueeze(-1) == positions).movedim(-1, axis)
    return torch.where(hot, on_value.reshape(()), off_value.reshape(()))
