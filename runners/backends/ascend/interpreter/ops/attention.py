"""Fused attention: FusedInferAttentionScore, IncreFlashAttention, PromptFlashAttention.

softmax(q k^T * scale, masked) v, per head; groups of query heads share a key head.

Rounding (16-bit inputs): q k^T accumulates in fp32 and is scaled there; softmax is in fp32; its numerator
exp(s - max) is rounded to the inputs' dtype before it is multiplied by v, which accumulates in fp32; the division by
the fp32 sum comes last, and the result is rounded once. The real kernels walk over keys in tiles and rescale partial
results; that is not modelled, nor is inner_precise=1 of the 310P, which keeps fp16 in between.
Source: prototypes; ops-transformer attention/fused_infer_attention_score, incre_flash_attention,
prompt_flash_attention and their op documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.attention_mask import (
    BAND,
    CAUSAL,
    UNLIMITED,
    hidden_keys,
    read_mask,
)
from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    HALVES,
    require,
    require_dtype,
    require_indices,
    require_same_dtype,
    require_value,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

# key_antiquant_mode and value_antiquant_mode: a scale per token and head, in blocks as the cache has them.
PER_TOKEN_HEAD_PAGED = 5
# inner_precise: what is kept in fp32 in between. Larger values treat rows without a visible key, which are refused.
_PRECISE_OR_FAST = (0, 1)


@ge_op("FusedInferAttentionScore")
def fused_infer_attention_score(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    block_table: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    query_quant_mode: int = 0,
    pse_type: int = 0,
    out_dtype: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of query over key and value, paged with block_table or not; the second output is empty.

    input_layout BSH, BSND or BNSD for query and, unpaged, for key and value. Paged: key and value are
    [blocks, block_size, kv_heads * head_dim] or, with BNSD, [blocks, kv_heads, block_size, head_dim]; then
    actual_seq_lengths_kv [batch] and block_table int32 [batch, width] are required.
    sparse_mode 0: atten_mask, if given, is the whole mask (true: hidden), limited to the band of pre_tokens and
    next_tokens. 3: causal, the last query token sees the last key; atten_mask is the fixed 2048 x 2048 triangle. 4: the
    band from pre_tokens before a query's own key to next_tokens after it, with the mask and the alignment of 3.
    With one query token the op ignores sparse_mode, pre_tokens and next_tokens: a graph that sets one is refused.
    Query rows at or beyond actual_seq_lengths come out 0.
    Paged int8 keys and values, with one query token only: both antiquant scales are fp32 [blocks, kv_heads,
    block_size] in mode 5; int8 * scale is rounded to the query's dtype and takes the place of the key or value.
    """
    require(not softmax_lse_flag, "softmax_lse")
    require_value("inner_precise", inner_precise, 0)
    require_value("antiquant_mode", antiquant_mode, 0)
    require_value("query_quant_mode", query_quant_mode, 0)
    require_value("pse_type", pse_type, 0)
    require_value("out_dtype", out_dtype, 0)
    require(len(key) == 1 and len(value) == 1, "key or value given as a list of tensors")
    kv_heads = num_key_value_heads or num_heads
    if query.shape[2 if input_layout == "BNSD" else 1] == 1:
        given = (sparse_mode, pre_tokens, next_tokens)
        require(
            given == (0, UNLIMITED, UNLIMITED),
            f"sparse_mode, pre_tokens and next_tokens {given} with one query token, for which the op ignores them",
        )
    scales = None
    if key_antiquant_scale is not None or value_antiquant_scale is not None:
        modes = (key_antiquant_mode, value_antiquant_mode)
        require(modes == (PER_TOKEN_HEAD_PAGED,) * 2, f"antiquant modes {modes}; the interpreter knows 5")
        scales = (key_antiquant_scale, value_antiquant_scale)
    out = _attend(
        query, key[0], value[0], atten_mask, actual_seq_lengths, actual_seq_lengths_kv, block_table,
        num_heads, kv_heads, scale, input_layout, sparse_mode, block_size, (pre_tokens, next_tokens), scales,
    )  # fmt: skip
    return out, torch.empty(0, dtype=torch.float32)


@ge_op("IncreFlashAttention")
def incre_flash_attention(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    block_table: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    block_size: int = 0,
    inner_precise: int = 1,
) -> Tensor:
    """One query token per row over its keys; actual_seq_lengths [batch] are the keys' lengths.

    Layouts and paging as in FusedInferAttentionScore; num_key_value_heads 0 means num_heads.
    """
    require_value("inner_precise", inner_precise, *_PRECISE_OR_FAST)
    require(len(key) == 1 and len(value) == 1, "key or value given as a list of tensors")
    tokens = query.shape[2 if input_layout == "BNSD" else 1]
    require(tokens == 1, f"IncreFlashAttention of {tokens} query tokens; it takes one")
    return _attend(
        query, key[0], value[0], atten_mask, None, actual_seq_lengths, block_table,
        num_heads, num_key_value_heads or num_heads, scale_value, input_layout, 0, block_size, (UNLIMITED, UNLIMITED),
    )  # fmt: skip


@ge_op("PromptFlashAttention")
def prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    pre_tokens: int = 214748647,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    sparse_mode: int = 0,
    inner_precise: int = 1,
) -> Tensor:
    """Unpaged attention of many query tokens; masks as in FusedInferAttentionScore, heads as in IncreFlashAttention."""
    require_value("inner_precise", inner_precise, *_PRECISE_OR_FAST)
    return _attend(
        query, key, value, atten_mask, actual_seq_lengths, actual_seq_lengths_kv, None,
        num_heads, num_key_value_heads or num_heads, scale_value, input_layout, sparse_mode, 0,
        (pre_tokens, next_tokens),
    )  # fmt: skip


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    query_lengths: Tensor | None,
    kv_lengths: Tensor | None,
    block_table: Tensor | None,
    num_heads: int,
    kv_heads: int,
    scale: float,
    layout: str,
    sparse_mode: int,
    block_size: int,
    band: tuple[int, int],
    scales: tuple[Tensor | None, Tensor | None] | None = None,
) -> Tensor:
    require_dtype("query", query, *HALVES)
    if scales is None:
        require_same_dtype(query=query, key=key, value=value)
    require(num_heads % kv_heads == 0, f"{num_heads} heads in {kv_heads} groups")
    require(sparse_mode in (0, CAUSAL, BAND), f"sparse_mode {sparse_mode}; the interpreter knows 0, 3 and 4")
    q = _split_heads(query, layout, num_heads)  # [batch, tokens, heads, head_dim], a view
    batch, tokens, _, head_dim = q.shape
    if block_table is None:
        keys = list(_split_heads(key, layout, kv_heads))
        values = list(_split_heads(value, layout, kv_heads))
        capacity = keys[0].shape[0]
        require(len(keys) == batch, f"{len(keys)} rows of keys for {batch} rows of queries")
    else:
        capacity = _check_paging(key, value, block_table, kv_lengths, batch, layout, kv_heads, block_size)
    if scales is not None:
        require(block_table is not None and tokens == 1, "int8 keys other than paged, for one query token")
        for cache, cache_scales in ((key, scales[0]), (value, scales[1])):
            _check_scales(cache, cache_scales, kv_heads, block_size)
    q_lens = _lengths(query_lengths, batch, tokens, "actual_seq_lengths")
    kv_lens = _lengths(kv_lengths, batch, capacity, "actual_seq_lengths_kv")
    mask = None if atten_mask is None else read_mask(atten_mask, sparse_mode, batch, tokens, capacity)
    require(sparse_mode == 0 or mask is not None, f"sparse_mode {sparse_mode} without its mask")

    out = torch.zeros(batch, tokens, num_heads, head_dim, dtype=query.dtype)
    for row in range(batch):
        q_len, kv_len = q_lens[row], kv_lens[row]
        if block_table is None:
            k, v = keys[row][:kv_len], values[row][:kv_len]
        else:
            blocks = block_table[row, : -(-kv_len // block_size)]
            k = _paged(key, blocks, kv_heads)[:kv_len]
            v = _paged(value, blocks, kv_heads)[:kv_len]
            if scales is not None:
                k, v = (
                    (x.float() * s[blocks].mT.flatten(0, 1)[:kv_len, :, None]).to(query.dtype)
                    for x, s in zip((k, v), scales, strict=True)
                    if s is not None
                )
        hidden = hidden_keys(mask, sparse_mode, row, q_len, kv_len, band)
        out[row, :q_len] = _attend_row(q[row, :q_len], k, v, hidden, scale)
    if layout == "BNSD":
        return out.transpose(1, 2).contiguous()
    return out if layout == "BSND" else out.flatten(2)


def _attend_row(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """q [tokens, heads, head_dim], k and v [keys, kv_heads, head_dim], hidden bool [tokens, keys] -> like q."""
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.float().reshape(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    grouped = grouped.reshape(kv_heads, -1, head_dim)  # [kv_heads, group * tokens, head_dim]
    scores = torch.bmm(grouped, k.float().permute(1, 2, 0)) * scale
    if hidden is not None:
        scores = scores.view(kv_heads, -1, tokens, k.shape[0]).masked_fill(hidden, -torch.inf).view_as(scores)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    total = weights.sum(-1, keepdim=True)
    attended = torch.bmm(weights.to(q.dtype).float(), v.float().transpose(0, 1)) / total
    return attended.view(kv_heads, -1, tokens, head_dim).permute(2, 0, 1, 3).reshape(q.shape).to(q.dtype)


def _split_heads(x: Tensor, layout: str, heads: int) -> Tensor:
    """A view [batch, tokens, heads, head_dim]."""
    require(layout in ("BSH", "BSND", "BNSD"), f"input_layout {layout!r}; the interpreter knows BSH, BSND and BNSD")
    require(x.dim() == (3 if layout == "BSH" else 4), f"a tensor of rank {x.dim()} in layout {layout}")
    if layout == "BSH":
        require(x.shape[-1] % heads == 0, f"size {x.shape[-1]} in {heads} heads")
        return x.unflatten(-1, (heads, -1))
    split = x.transpose(1, 2) if layout == "BNSD" else x
    require(split.shape[2] == heads, f"{split.shape[2]} heads, the attributes say {heads}")
    return split


def _paged(cache: Tensor, blocks: Tensor, kv_heads: int) -> Tensor:
    """The tokens of `blocks` as [tokens, kv_heads, head_dim]."""
    gathered = cache.index_select(0, blocks)
    if cache.dim() == 4:
        gathered = gathered.transpose(1, 2)  # [blocks, block_size, kv_heads, head_dim]
        return gathered.reshape(-1, *gathered.shape[2:])
    return gathered.view(-1, kv_heads, cache.shape[-1] // kv_heads)


def _check_paging(
    key: Tensor,
    value: Tensor,
    block_table: Tensor,
    kv_lengths: Tensor | None,
    batch: int,
    layout: str,
    kv_heads: int,
    block_size: int,
) -> int:
    """Checks the paged inputs; returns how many tokens a row of the block table can address."""
    require_dtype("block_table", block_table, torch.int32)
    require(block_table.dim() == 2 and block_table.shape[0] == batch, f"block_table {tuple(block_table.shape)}")
    require(kv_lengths is not None, "paged attention needs the keys' lengths")
    require(key.shape == value.shape, f"caches {tuple(key.shape)} and {tuple(value.shape)} differ")
    legal_rank = key.dim() == 3 or (key.dim() == 4 and layout == "BNSD")
    require(legal_rank, f"a cache of rank {key.dim()} with layout {layout}")
    if key.dim() == 4:
        require(key.shape[1] == kv_heads, f"cache of {key.shape[1]} heads, the attributes say {kv_heads}")
    held = key.shape[-2]
    require(held == block_size, f"block_size {block_size}, the cache's blocks hold {held} tokens")
    width = block_table.shape[1]
    lengths = kv_lengths if kv_lengths is not None else block_table.new_zeros(0)
    used = torch.arange(width) * block_size < lengths.reshape(-1, 1)
    require_indices("block_table", block_table[used.expand(batch, width)], key.shape[0])
    return width * block_size


def _check_scales(cache: Tensor, scales: Tensor | None, kv_heads: int, block_size: int) -> None:
    if scales is None:
        raise GeGraphError("scales of keys without those of values, or the other way round")
    require_dtype("key or value", cache, torch.int8)
    require_dtype("antiquant_scale", scales, torch.float32)
    expected = (cache.shape[0], kv_heads, block_size)
    require(tuple(scales.shape) == expected, f"antiquant_scale {tuple(scales.shape)}; mode 5 takes {expected}")


def _lengths(lengths: Tensor | None, batch: int, limit: int, name: str) -> list[int]:
    if lengths is None:
        return [limit] * batch
    require_dtype(name, lengths, torch.int64)
    values: list[int] = lengths.reshape(-1).tolist()
    require(len(values) in (1, batch), f"{name} has {len(values)} values for {batch} rows")
    for value in values:
        if not 1 <= value <= limit:
            raise GeGraphError(f"{name} holds {value}; legal are 1 to {limit}")
    return values * batch if len(values) == 1 else values
