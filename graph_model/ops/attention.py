"""Paged attention: one op for whole prompts, chunks of prompts and decode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_model.ops.registry import canonical_op


@canonical_op(
    "paged_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache,"
    " Tensor slot_mapping, Tensor? query_lens, Tensor? context_lens, Tensor? block_table, float scale) -> Tensor"
)
def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    query_lens: Tensor | None,
    context_lens: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> Tensor:
    """Write the new keys and values into the cache, then attend causally. Kwon et al., arXiv:2309.06180.

    query [batch, tokens, heads, head_dim]; key, value [batch, tokens, kv_heads, head_dim].
    key_cache, value_cache [num_blocks, block_size, kv_heads, head_dim], written in place.
    slot_mapping [batch, tokens] int64: block * block_size + offset for each token; distinct within the call.
    query_lens [batch] int64: tokens of a row that are not padding; None: all.
    context_lens [batch] int64: tokens that the row's blocks hold after the write.
    block_table [batch, width] int64: the row's blocks in order; entries beyond its context are ignored.
    With block_table None every row begins at position 0 and attends to its own new keys and values.
    Returns [batch, tokens, heads, head_dim]; rows of padded tokens hold finite numbers without meaning.

    The new tokens are the last of the context. What the cache holds beyond context_lens never reaches the result,
    not even when it is NaN.
    """
    block_size = key_cache.shape[1]
    slots = slot_mapping // block_size, slot_mapping % block_size
    key_cache.index_put_(slots, key)
    value_cache.index_put_(slots, value)
    if block_table is not None:
        key, value = (cache[block_table].flatten(1, 2) for cache in (key_cache, value_cache))
    return _attend_causally(query, key, value, query_lens, context_lens if block_table is not None else None, scale)


@canonical_op(
    "paged_attention_int8(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache,"
    " Tensor(c!) key_scales, Tensor(d!) value_scales, Tensor slot_mapping, Tensor? query_lens, Tensor? context_lens,"
    " Tensor? block_table, float scale) -> Tensor"
)
def paged_attention_int8(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
    slot_mapping: Tensor,
    query_lens: Tensor | None,
    context_lens: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> Tensor:
    """paged_attention with caches of int8, quantized as quantize_rows does: a scale for each token and head.

    key_cache, value_cache [num_blocks, kv_heads, block_size, head_dim] int8; key_scales, value_scales [num_blocks,
    kv_heads, block_size] float32: heads stand before tokens in both, as FusedInferAttentionScore takes them. All four
    are written in place. Attention computes on dequantized keys and values, in the query's dtype; without a block
    table on the new ones as they are.
    """
    block_size = key_cache.shape[2]
    slots = slot_mapping // block_size, slot_mapping % block_size
    for new, cache, scales in ((key, key_cache, key_scales), (value, value_cache, value_scales)):
        q, row_scales = torch.ops.gemma.quantize_rows(new)
        cache.transpose(1, 2).index_put_(slots, q)
        scales.transpose(1, 2).index_put_(slots, row_scales)
    if block_table is not None:
        key, value = (
            (cache[block_table].float() * scales[block_table].unsqueeze(-1))
            .to(query.dtype)
            .transpose(2, 3)
            .flatten(1, 2)
            for cache, scales in ((key_cache, key_scales), (value_cache, value_scales))
        )
    return _attend_causally(query, key, value, query_lens, context_lens if block_table is not None else None, scale)


def _attend_causally(
    query: Tensor, keys: Tensor, values: Tensor, query_lens: Tensor | None, context_lens: Tensor | None, scale: float
) -> Tensor:
    """Each query sees the keys up to its own; queries are the last of context_lens, or None: the keys are theirs."""
    batch, tokens = query.shape[:2]
    steps = torch.arange(tokens, device=query.device)
    if context_lens is None:
        lens = steps.new_full((batch,), tokens) if query_lens is None else query_lens
        query_positions = steps.expand(batch, tokens)
    else:
        lens = context_lens
        start = lens - (tokens if query_lens is None else query_lens)
        query_positions = start[:, None] + steps
    key_positions = torch.arange(keys.shape[1], device=query.device)
    # Padded queries stand beyond the context: let them see all of it, so that their softmax is defined.
    last_visible = torch.minimum(query_positions, (lens - 1)[:, None])
    mask = key_positions <= last_visible[:, :, None]  # [batch, tokens, context]
    valid = (key_positions < lens[:, None])[:, :, None, None]
    return _attend(query, torch.where(valid, keys, 0), torch.where(valid, values, 0), mask, scale)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention with the query heads that share a KV head as rows over it: keys and values are never repeated."""
    tokens, heads = query.shape[1:3]
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    rows = query.unflatten(2, (kv_heads, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)  # [b, kv, tokens * group, d]
    row_mask = mask[:, None, :, None, :].expand(-1, 1, -1, group, -1).flatten(2, 3)  # [b, 1, tokens * group, context]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if tokens == 1:
        # One token per row: matrix products share the work among threads where the fused kernel cannot.
        scores = torch.matmul(rows.float(), keys.float().transpose(2, 3)) * scale
        weights = scores.masked_fill(~row_mask, -torch.inf).softmax(-1)
        attended = torch.matmul(weights, values.float()).to(query.dtype)
    else:
        attended = F.scaled_dot_product_attention(rows, keys, values, attn_mask=row_mask, scale=scale)
    return attended.unflatten(2, (tokens, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)
