"""GE ops by their definitions, in float64: what the interpreter and a device are held to.

Written from the op documents, one formula per op type that lowered graphs use, head by head and row by row where that
is the plainest way to say it. Nothing is rounded and nothing is fast. Inputs and attributes are named as in GE;
floating-point inputs arrive as float64 tensors. Attributes that the graph leaves out have the prototype's default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graph_model.ascend.ge_graph import GE_DTYPES

Inputs = Mapping[str, Any]  # name -> tensor, or list of tensors
Attrs = Mapping[str, Any]
Formula = Callable[[Inputs, Attrs], list[Tensor]]
FORMULAS: dict[str, Formula] = {}


def formula(*types: str) -> Callable[[Formula], Formula]:
    def register(function: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(types, function))
        return function

    return register


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None) -> Tensor:
    """q [tokens, heads, D], k and v [keys, kv_heads, D] -> [tokens, heads, D], head by head; hidden [tokens, keys]."""
    out = torch.empty(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        keys, values = k[:, head // group].double(), v[:, head // group].double()
        scores = q[:, head].double() @ keys.T * scale
        if hidden is not None:
            scores[hidden] = -math.inf
        out[:, head] = torch.softmax(scores, -1) @ values
    return out


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * gamma over the last dimension."""
    return x.double() / (x.double().pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * gamma.double()


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + (-second half, first half) * sin."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x.double() * cos.double() + rotated.double() * sin.double()


def gelu(x: Tensor, tanh_form: bool) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), or 0.5 x (1 + erf(x / sqrt(2)))."""
    x = x.double()
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + (inner.tanh() if tanh_form else torch.erf(x / math.sqrt(2))))


@formula("MatMul", "MatMulV2")
def _matmul(x: Inputs, a: Attrs) -> list[Tensor]:
    left = x["x1"].T if a.get("transpose_x1") else x["x1"]
    right = x["x2"].T if a.get("transpose_x2") else x["x2"]
    return [torch.einsum("mk,kn->mn", left, right) + x.get("bias", 0.0)]


@formula("BatchMatMul")
def _batch_matmul(x: Inputs, a: Attrs) -> list[Tensor]:
    left = x["x1"].transpose(-1, -2) if a.get("adj_x1") else x["x1"]
    right = x["x2"].transpose(-1, -2) if a.get("adj_x2") else x["x2"]
    return [(left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)]


@formula("RmsNorm")
def _rms_norm(x: Inputs, a: Attrs) -> list[Tensor]:
    return [rms_norm(x["x"], x["gamma"], a.get("epsilon", 1e-6))]


@formula("GemmaRmsNorm")
def _gemma_rms_norm(x: Inputs, a: Attrs) -> list[Tensor]:
    return [rms_norm(x["x"], 1 + x["gamma"], a.get("epsilon", 1e-6))]


@formula("AddRmsNorm")
def _add_rms_norm(x: Inputs, a: Attrs) -> list[Tensor]:
    total = x["x1"] + x["x2"]
    return [rms_norm(total, x["gamma"], a.get("epsilon", 1e-6)), torch.empty(0), total]


@formula("RotaryMul")
def _rotary_mul(x: Inputs, a: Attrs) -> list[Tensor]:
    return [rotary(x["x"], x["r1"], x["r2"])]


@formula("GeGluV2")
def _geglu(x: Inputs, a: Attrs) -> list[Tensor]:
    left, right = x["x"].chunk(2, a.get("dim", -1))
    gate, up = (left, right) if a.get("activate_left") else (right, left)
    activated = gelu(gate, bool(a.get("approximate", 1)))
    return [activated * up, activated]


@formula("ScatterPaKvCache")
def _scatter_pa(x: Inputs, a: Attrs) -> list[Tensor]:
    caches = [x["key_cache"].clone(), x["value_cache"].clone()]
    for token, slot in enumerate(x["slot_mapping"].tolist()):
        block, offset = divmod(slot, caches[0].shape[1])
        caches[0][block, offset], caches[1][block, offset] = x["key"][token], x["value"][token]
    return caches


@formula("ScatterNdUpdate")
def _scatter_nd(x: Inputs, a: Attrs) -> list[Tensor]:
    var = x["var"].clone()
    for index, update in zip(x["indices"].reshape(-1, x["indices"].shape[-1]).tolist(), x["updates"], strict=True):
        var[tuple(index)] = update
    return [var]


@formula("FusedInferAttentionScore")
def _fused_infer(x: Inputs, a: Attrs) -> list[Tensor]:
    layout, heads = a.get("input_layout", "BSH"), a["num_heads"]
    out = _attend(x, x["key"][0], x["value"][0], layout, heads, a.get("num_key_value_heads") or heads, a["scale"],
                  a.get("sparse_mode", 0))  # fmt: skip
    return [out]


@formula("IncreFlashAttention")
def _incremental(x: Inputs, a: Attrs) -> list[Tensor]:
    lengths = {"actual_seq_lengths_kv": x["actual_seq_lengths"]} if "actual_seq_lengths" in x else {}
    renamed = {**{name: value for name, value in x.items() if name != "actual_seq_lengths"}, **lengths}
    heads = a["num_heads"]
    return [_attend(renamed, x["key"][0], x["value"][0], a.get("input_layout", "BSH"), heads,
                    a.get("num_key_value_heads", 1) or heads, a["scale_value"], 0)]  # fmt: skip


@formula("PromptFlashAttention")
def _prompt(x: Inputs, a: Attrs) -> list[Tensor]:
    heads = a["num_heads"]
    assert a.get("next_tokens", 0) >= x["key"].shape[1], "a band, which lowered graphs do not use"
    return [_attend(x, x["key"], x["value"], a.get("input_layout", "BSH"), heads,
                    a.get("num_key_value_heads", 1) or heads, a["scale_value"], a.get("sparse_mode", 0))]  # fmt: skip


def _attend(
    x: Inputs, key: Tensor, value: Tensor, layout: str, heads: int, kv_heads: int, scale: float, sparse: int
) -> Tensor:
    """Row by row over the keys that the row's block table and length name; rows of padding stay 0."""
    assert layout in ("BSH", "BSND"), layout
    query = x["query"].unflatten(-1, (heads, -1)) if layout == "BSH" else x["query"]
    out = torch.zeros(query.shape, dtype=torch.float64)
    table, mask = x.get("block_table"), x.get("atten_mask")
    for row in range(query.shape[0]):
        k, v = (side[table[row]].flatten(0, 1) if table is not None else side[row] for side in (key, value))
        k, v = (side.reshape(side.shape[0], kv_heads, -1) for side in (k, v))
        kv_len = int(x["actual_seq_lengths_kv"][row]) if "actual_seq_lengths_kv" in x else k.shape[0]
        q_len = int(x["actual_seq_lengths"][row]) if "actual_seq_lengths" in x else query.shape[1]
        hidden = None
        if sparse == 3:
            hidden = torch.arange(kv_len) > torch.arange(kv_len - q_len, kv_len)[:, None]
        elif mask is not None:
            whole = mask.reshape(-1, *mask.shape[-2:]).bool()
            hidden = whole[row if len(whole) > 1 else 0, :q_len, :kv_len]
        out[row, :q_len] = attention(query[row, :q_len], k[:kv_len], v[:kv_len], scale, hidden)
    return out.flatten(2) if layout == "BSH" else out


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
    "Cos": lambda x: torch.sin(x + math.pi / 2),
    "Sin": lambda x: torch.cos(x - math.pi / 2),
    "Identity": lambda x: x,
}


def _elementwise(op: str) -> Formula:
    return lambda x, a: [_ELEMENTWISE[op](*x.values())]


FORMULAS.update({op: _elementwise(op) for op in _ELEMENTWISE})


@formula("Muls")
def _muls(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["x"] * a["value"]]


@formula("Adds")
def _adds(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["x"] + a["value"]]


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
    for dim in sorted((axis % values.dim() for axis in x["axes"].flatten().tolist()), reverse=True):
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
    dim = int(x["axis"])
    moved = x["x"].movedim(dim, -1)
    ones = torch.ones(moved.shape[-1], moved.shape[-1], dtype=torch.float64).triu()
    return [(moved.double() @ ones).movedim(-1, dim).to(x["x"].dtype)]


@formula("Sort")
def _sort(x: Inputs, a: Attrs) -> list[Tensor]:
    return _ordered(x["x"], a.get("axis", -1), a.get("descending", False), None)


@formula("TopKV2", "TopK")
def _top_k(x: Inputs, a: Attrs) -> list[Tensor]:
    return _ordered(x["x"], a.get("dim", -1), a.get("largest", True), int(x["k"]))


def _ordered(x: Tensor, dim: int, descending: bool, count: int | None) -> list[Tensor]:
    """Values and positions in order, equal values by position, by Python's stable sort."""
    rows = x.movedim(dim, -1)
    order = torch.tensor(
        [sorted(range(len(row)), key=lambda i, row=row: -row[i] if descending else row[i])[:count] for row in
         rows.reshape(-1, rows.shape[-1]).tolist()]
    ).view(*rows.shape[:-1], -1)  # fmt: skip
    return [rows.gather(-1, order).movedim(-1, dim), order.movedim(-1, dim)]


@formula("ArgMaxV2")
def _arg_max(x: Inputs, a: Attrs) -> list[Tensor]:
    dim = int(x["dimension"])
    return [_ordered(x["x"], dim, True, 1)[1].squeeze(dim)]


@formula("Reshape")
def _reshape(x: Inputs, a: Attrs) -> list[Tensor]:
    return [torch.tensor(x["x"].flatten().tolist(), dtype=x["x"].dtype).view(x["shape"].tolist())]


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
    return [x["x"] * torch.ones(x["shape"].tolist(), dtype=x["x"].dtype)]


@formula("ConcatV2")
def _concat(x: Inputs, a: Attrs) -> list[Tensor]:
    dim = int(x["concat_dim"])
    return [torch.stack([part for tensor in x["x"] for part in tensor.unbind(dim)], dim)]


@formula("SplitV")
def _split(x: Inputs, a: Attrs) -> list[Tensor]:
    dim, sizes = int(x["split_dim"]), x["size_splits"].tolist()
    sizes = [x["x"].shape[dim] - sum(sizes) - 1 if size == -1 else size for size in sizes]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x["x"].index_select(dim, torch.arange(i, i + n)) for i, n in zip(starts, sizes, strict=True)]


@formula("Slice")
def _slice(x: Inputs, a: Attrs) -> list[Tensor]:
    result = x["x"]
    for dim, (start, size) in enumerate(zip(x["offsets"].tolist(), x["size"].tolist(), strict=True)):
        result = result.index_select(dim, torch.arange(start, result.shape[dim] if size == -1 else start + size))
    return [result]


@formula("StridedSliceV2")
def _strided_slice(x: Inputs, a: Attrs) -> list[Tensor]:
    result = x["x"]
    axes = x["axes"].tolist() if "axes" in x else range(len(x["begin"]))
    strides = x["strides"].tolist() if "strides" in x else [1] * len(x["begin"])
    for axis, begin, end, stride in zip(axes, x["begin"].tolist(), x["end"].tolist(), strides, strict=True):
        size = result.shape[axis]
        result = result.index_select(axis, torch.tensor(range(size)[begin:end:stride]))
    return [result]


@formula("ReverseV2")
def _reverse(x: Inputs, a: Attrs) -> list[Tensor]:
    result = x["x"]
    for axis in x["axis"].flatten().tolist():
        result = result.index_select(axis, torch.arange(result.shape[axis] - 1, -1, -1))
    return [result]


@formula("Range")
def _range(x: Inputs, a: Attrs) -> list[Tensor]:
    start, limit, delta = (x[name].item() for name in ("start", "limit", "delta"))
    return [torch.tensor([start + i * delta for i in range(math.ceil((limit - start) / delta))])]


@formula("Fill")
def _fill(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["value"].reshape(-1)[0] * torch.ones(x["dims"].tolist(), dtype=x["value"].dtype)]
