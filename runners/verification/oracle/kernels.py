"""Formulas of matrix products, norms, rotary embedding, activations, caches and attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graph_gemma.runners.verification.oracle.registry import Attrs, Inputs, formula


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


@formula("GemmV2")
def _gemm(x: Inputs, a: Attrs) -> list[Tensor]:
    left = x["a"].T if a.get("transpose_a") else x["a"]
    right = x["b"].T if a.get("transpose_b") else x["b"]
    return [x["alpha"] * torch.einsum("mk,kn->mn", left, right) + x["beta"] * x["c"]]


@formula("BatchMatMul")
def _batch_matmul(x: Inputs, a: Attrs) -> list[Tensor]:
    left = x["x1"].transpose(-1, -2) if a.get("adj_x1") else x["x1"]
    right = x["x2"].transpose(-1, -2) if a.get("adj_x2") else x["x2"]
    return [(left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)]


@formula("RmsNorm")
def _rms_norm(x: Inputs, a: Attrs) -> list[Tensor]:
    epsilon = a.get("epsilon", 1e-6)
    return [rms_norm(x["x"], x["gamma"], epsilon), _reciprocal_rms(x["x"], epsilon)]


@formula("GemmaRmsNorm")
def _gemma_rms_norm(x: Inputs, a: Attrs) -> list[Tensor]:
    epsilon = a.get("epsilon", 1e-6)
    return [rms_norm(x["x"], 1 + x["gamma"], epsilon), _reciprocal_rms(x["x"], epsilon)]


@formula("AddRmsNorm")
def _add_rms_norm(x: Inputs, a: Attrs) -> list[Tensor]:
    """What is normalized is the sum as it is returned, rounded."""
    total, epsilon = x["x1"] + x["x2"], a.get("epsilon", 1e-6)
    rounded = total.to(a["input_dtypes"]["x1"]).double()
    return [rms_norm(rounded, x["gamma"], epsilon), _reciprocal_rms(rounded, epsilon), total]


def _reciprocal_rms(x: Tensor, epsilon: float) -> Tensor:
    return 1 / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


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


@formula("DynamicQuantUpdateScatter")
def _dynamic_quant_update_scatter(x: Inputs, a: Attrs) -> list[Tensor]:
    """The integers before they are rounded."""
    integers, scales = x["var"].double(), x["var_scale"].clone()
    for (first, start), update in zip(x["indices"].tolist(), x["updates"], strict=True):
        for offset in range(update.shape[-2]):
            row = update[..., offset, :]
            step = row.abs().amax(-1, keepdim=True) / 127
            integers[first, ..., start + offset, :] = torch.where(step > 0, row / step, 0)
            scales[first, ..., start + offset, :] = step
    return [integers, scales]


@formula("FusedInferAttentionScore")
def _fused_infer(x: Inputs, a: Attrs) -> list[Tensor]:
    layout, heads = a.get("input_layout", "BSH"), a["num_heads"]
    out = _attend(x, x["key"][0], x["value"][0], layout, heads, a.get("num_key_value_heads") or heads, a["scale"],
                  a.get("sparse_mode", 0), (a.get("pre_tokens"), a.get("next_tokens")))  # fmt: skip
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
    x: Inputs,
    key: Tensor,
    value: Tensor,
    layout: str,
    heads: int,
    kv_heads: int,
    scale: float,
    sparse: int,
    band: tuple[int | None, int | None] = (None, None),
) -> Tensor:
    """Row by row over the keys that the row's block table and length name; rows of padding stay 0."""
    assert layout in ("BSH", "BSND", "BNSD"), layout
    query = x["query"].unflatten(-1, (heads, -1)) if layout == "BSH" else x["query"]
    if layout == "BNSD":
        assert key.dim() == 4
        assert "block_table" in x
        query, key, value = (side.transpose(1, 2) for side in (query, key, value))
    out = torch.zeros(query.shape, dtype=torch.float64)
    table, mask = x.get("block_table"), x.get("atten_mask")
    for row in range(query.shape[0]):
        k, v = (side[table[row]].flatten(0, 1) if table is not None else side[row] for side in (key, value))
        k, v = (side.reshape(side.shape[0], kv_heads, -1) for side in (k, v))
        if table is not None and "key_antiquant_scale" in x:
            blocks = table[row]
            scales = (x[f"{name}_antiquant_scale"][blocks].transpose(1, 2) for name in ("key", "value"))
            factors = (by_token.reshape(-1, kv_heads, 1) for by_token in scales)
            k, v = (side.double() * factor for side, factor in zip((k, v), factors, strict=True))
        kv_len = int(x["actual_seq_lengths_kv"][row]) if "actual_seq_lengths_kv" in x else k.shape[0]
        q_len = int(x["actual_seq_lengths"][row]) if "actual_seq_lengths" in x else query.shape[1]
        hidden = None
        if sparse == 3:
            hidden = torch.arange(kv_len) > torch.arange(kv_len - q_len, kv_len)[:, None]
        elif sparse == 4:
            before, after = band
            assert before is not None
            assert after is not None
            distance = torch.arange(kv_len) - torch.arange(kv_len - q_len, kv_len)[:, None]
            hidden = ~((-before <= distance) & (distance <= after))
        elif mask is not None:
            whole = mask.reshape(-1, *mask.shape[-2:]).bool()
            hidden = whole[row if len(whole) > 1 else 0, :q_len, :kv_len]
        out[row, :q_len] = attention(query[row, :q_len], k[:kv_len], v[:kv_len], scale, hidden)
    return {"BSH": out.flatten(2), "BSND": out, "BNSD": out.transpose(1, 2)}[layout]
