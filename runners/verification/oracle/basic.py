"""Formulas of elementwise ops, choices, reductions, and ops that rearrange."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES
from graph_gemma.runners.verification.oracle.registry import FORMULAS, Attrs, Formula, Inputs, formula


@formula("GatherV2")
def _gather(x: Inputs, a: Attrs) -> list[Tensor]:
    axis = int(x["axis"])
    parts = [x["x"].select(axis, index) for index in x["indices"].flatten().tolist()]
    return [torch.stack(parts, axis).unflatten(axis, x["indices"].shape) if x["indices"].dim() else parts[0]]


@formula("GatherElements")
def _gather_elements(x: Inputs, a: Attrs) -> list[Tensor]:
    dim = a.get("dim", 0) % x["x"].dim()
    positions = torch.meshgrid(*(torch.arange(size) for size in x["index"].shape), indexing="ij")
    return [x["x"][tuple(x["index"] if axis == dim else grid for axis, grid in enumerate(positions))]]


@formula("Cast")
def _cast(x: Inputs, a: Attrs) -> list[Tensor]:
    dtype = GE_DTYPES[a["dst_type"]]
    if dtype is torch.bool:
        return [x["x"] != 0]
    return [x["x"].double() if dtype.is_floating_point else x["x"].double().trunc().long()]


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Add": lambda x1, x2: x1 + x2,
    "Sub": lambda x1, x2: x1 - x2,
    "Mul": lambda x1, x2: x1 * x2,
    "RealDiv": lambda x1, x2: x1 / x2,
    "FloorDiv": lambda x1, x2: (x1 - x1 % x2) // x2,
    "FloorMod": lambda x1, x2: x1 - x2 * torch.floor(x1.double() / x2).to(x1.dtype),
    "Minimum": lambda x1, x2: torch.where(x1 < x2, x1, x2),
    "Maximum": lambda x1, x2: torch.where(x1 > x2, x1, x2),
    "Greater": lambda x1, x2: ~(x1 <= x2),
    "GreaterEqual": lambda x1, x2: ~(x1 < x2),
    "Less": lambda x1, x2: ~(x1 >= x2),
    "LessEqual": lambda x1, x2: ~(x1 > x2),
    "Equal": lambda x1, x2: ~(x1 != x2),
    "LogicalAnd": lambda x1, x2: (x1.int() * x2.int()).bool(),
    "LogicalOr": lambda x1, x2: (x1.int() + x2.int()).bool(),
    "LogicalNot": lambda x: x.int() == 0,
    "Neg": lambda x: 0 - x,
    "Abs": lambda x: torch.where(x < 0, 0 - x, x),
    "Cos": lambda x: torch.sin(x + math.pi / 2),
    "Sin": lambda x: torch.cos(x - math.pi / 2),
    "Exp": lambda x: torch.pow(math.e, x),
    "Tanh": lambda x: 1 - 2 / (torch.pow(math.e, 2 * x) + 1),
    "Log": lambda x: torch.log2(x) * math.log(2),
    "Identity": lambda x: x,
    "TensorMove": lambda x: x,
}


def _elementwise(op: str) -> Formula:
    return lambda x, a: [_ELEMENTWISE[op](*x.values())]


FORMULAS.update({op: _elementwise(op) for op in _ELEMENTWISE})


@formula("Muls")
def _muls(x: Inputs, a: Attrs) -> list[Tensor]:
    return [(x["x"].double() * a["value"]).to(x["x"].dtype)]


@formula("Adds")
def _adds(x: Inputs, a: Attrs) -> list[Tensor]:
    return [(x["x"].double() + a["value"]).to(x["x"].dtype)]


@formula("MaskedFill")
def _masked_fill(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.where(x["mask"], x["value"], x["x"])]


@formula("Select", "SelectV2")
def _select(x: Inputs, a: Attrs) -> list[Tensor]:
    condition, then, otherwise = x.values()
    return [torch.where(condition, then, otherwise)]


@formula("ClipByValue", "ClipByValueV2")
def _clip(x: Inputs, a: Attrs) -> list[Tensor]:
    low = torch.where(x["x"] < x["clip_value_min"], x["clip_value_min"], x["x"])
    return [torch.where(low > x["clip_value_max"], x["clip_value_max"], low)]


@formula("ReduceSum")
def _reduce_sum(x: Inputs, a: Attrs) -> list[Tensor]:
    return [_reduced(x, a, lambda values, dim: values.cumsum(dim).select(dim, -1))]


@formula("ReduceMax")
def _reduce_max(x: Inputs, a: Attrs) -> list[Tensor]:
    return [_reduced(x, a, lambda values, dim: values.sort(dim).values.select(dim, -1))]


def _reduced(x: Inputs, a: Attrs, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
    values = x["x"]
    for dim in sorted((axis % values.dim() for axis in _ints(x["axes"])), reverse=True):
        values = reduce(values, dim)
        values = values.unsqueeze(dim) if a.get("keep_dims") else values
    return values


@formula("SoftmaxV2")
def _softmax(x: Inputs, a: Attrs) -> list[Tensor]:
    return [_softmax_over(x["x"], a["axes"][0])]


@formula("LogSoftmaxV2")
def _log_softmax(x: Inputs, a: Attrs) -> list[Tensor]:
    return [_softmax_over(x["logits"], a["axes"][0]).log()]


def _softmax_over(x: Tensor, dim: int) -> Tensor:
    weights = (x - x.amax(dim, keepdim=True)).exp()
    return weights / weights.sum(dim, keepdim=True)


@formula("Cumsum")
def _cumsum(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.from_numpy(np.cumsum(x["x"].numpy(), axis=int(x["axis"])))]


@formula("Sort")
def _sort(x: Inputs, a: Attrs) -> list[Tensor]:
    return _ordered(x["x"], a.get("axis", -1), a.get("descending", False), None)


@formula("TopKV2", "TopK")
def _top_k(x: Inputs, a: Attrs) -> list[Tensor]:
    return _ordered(x["x"], a.get("dim", -1), a.get("largest", True), int(x["k"]))


def _ordered(x: Tensor, dim: int, descending: bool, count: int | None) -> list[Tensor]:
    """Values and positions in order, equal values by position."""
    values = x.numpy()
    order = np.argsort(-values if descending else values, axis=dim, kind="stable")
    order = np.take(order, np.arange(values.shape[dim] if count is None else count), axis=dim)
    return [torch.from_numpy(np.take_along_axis(values, order, dim)), torch.from_numpy(order)]


@formula("ArgMaxV2")
def _arg_max(x: Inputs, a: Attrs) -> list[Tensor]:
    dim = int(x["dimension"])
    return [_ordered(x["x"], dim, True, 1)[1].squeeze(dim)]


@formula("ArgMaxWithValue")
def _arg_max_with_value(x: Inputs, a: Attrs) -> list[Tensor]:
    values, indices = _ordered(x["x"], a["dimension"], True, 1)
    return [found if a.get("keep_dims") else found.squeeze(a["dimension"]) for found in (indices, values)]


@formula("Reshape")
def _reshape(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(x["x"].numpy()).ravel().reshape(_ints(x["shape"])))]


@formula("Transpose")
def _transpose(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.from_numpy(np.transpose(x["x"].numpy(), x["perm"].tolist()).copy())]


@formula("Unsqueeze")
def _unsqueeze(x: Inputs, a: Attrs) -> list[Tensor]:
    rank = x["x"].dim() + len(a["axes"])
    axes, sizes = {axis % rank for axis in a["axes"]}, iter(x["x"].shape)
    return [x["x"].reshape([1 if axis in axes else next(sizes) for axis in range(rank)])]


@formula("Squeeze")
def _squeeze(x: Inputs, a: Attrs) -> list[Tensor]:
    axes = {axis % x["x"].dim() for axis in a.get("axis") or range(x["x"].dim())}
    return [x["x"].reshape([size for axis, size in enumerate(x["x"].shape) if axis not in axes or size != 1])]


@formula("BroadcastTo")
def _broadcast(x: Inputs, a: Attrs) -> list[Tensor]:
    sizes = _ints(x["shape"])
    old = [1] * (len(sizes) - x["x"].dim()) + list(x["x"].shape)
    shape = [kept if size == -1 else size for kept, size in zip(old, sizes, strict=True)]
    return [torch.from_numpy(np.broadcast_to(x["x"].numpy(), shape).copy())]


@formula("ConcatV2")
def _concat(x: Inputs, a: Attrs) -> list[Tensor]:
    dim = int(x["concat_dim"])
    return [torch.stack([part for tensor in x["x"] for part in tensor.unbind(dim)], dim)]


@formula("Pack")
def _pack(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.cat([tensor.unsqueeze(a.get("axis", 0)) for tensor in x["x"]], a.get("axis", 0))]


@formula("SplitV")
def _split(x: Inputs, a: Attrs) -> list[Tensor]:
    dim, sizes = int(x["split_dim"]), _ints(x["size_splits"])
    sizes = [x["x"].shape[dim] - sum(sizes) - 1 if size == -1 else size for size in sizes]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x["x"].index_select(dim, torch.arange(i, i + n)) for i, n in zip(starts, sizes, strict=True)]


@formula("Slice")
def _slice(x: Inputs, a: Attrs) -> list[Tensor]:
    result = x["x"]
    for dim, (start, size) in enumerate(zip(_ints(x["offsets"]), _ints(x["size"]), strict=True)):
        result = result.index_select(dim, torch.arange(start, result.shape[dim] if size == -1 else start + size))
    return [result]


@formula("StridedSliceV2")
def _strided_slice(x: Inputs, a: Attrs) -> list[Tensor]:
    result = x["x"]
    begins, ends = _ints(x["begin"]), _ints(x["end"])
    axes = _ints(x["axes"]) if "axes" in x else list(range(len(begins)))
    strides = _ints(x["strides"]) if "strides" in x else [1] * len(begins)
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        size = result.shape[axis]
        result = result.index_select(axis, torch.tensor(range(size)[begin:end:stride]))
    return [result]


@formula("ReverseV2")
def _reverse(x: Inputs, a: Attrs) -> list[Tensor]:
    result = x["x"]
    for axis in _ints(x["axis"]):
        result = result.index_select(axis, torch.arange(result.shape[axis] - 1, -1, -1))
    return [result]


@formula("Range")
def _range(x: Inputs, a: Attrs) -> list[Tensor]:
    start, limit, delta = (x[name].item() for name in ("start", "limit", "delta"))
    return [torch.tensor([start + i * delta for i in range(math.ceil((limit - start) / delta))])]


@formula("Fill")
def _fill(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["value"].reshape(-1)[0] * torch.ones(_ints(x["dims"]), dtype=x["value"].dtype)]


@formula("ZerosLike")
def _zeros_like(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.zeros(x["x"].shape, dtype=x["x"].dtype)]


def _ints(values: Tensor) -> list[int]:
    """An input that is a list of integers; graphs give lists of one also as a number."""
    found: list[int] = values.flatten().tolist()
    return found
