"""Paged attention: one op for whole prompts, chunks of prompts and decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op


@canonical_op(
    "paged_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache,"
    " Tensor slot_mapping, Tensor? query_lens, Tensor? context_lens, Tensor? block_table, float scale,"
    " *, int? window=None, float? softcap=None) -> Tensor"
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
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Write the new keys and values into the cache, then attend causally. Kwon et al., arXiv:2309.06180.

    query [batch, tokens, heads, head_dim]; key, value [batch, tokens, kv_heads, head_dim].
    key_cache, value_cache [num_blocks, block_size, kv_heads, head_dim], written in place.
    slot_mapping [batch, tokens] int64: block * block_size + offset for each token; distinct within the call.
    query_lens [batch] int64: tokens of a row that are not padding; None: all.
    context_lens [batch] int64: tokens that the row's blocks hold after the write.
    block_table [batch, width] int64: the row's blocks in order; entries beyond its context are ignored.
    With block_table None every row begins at position 0 and attends to its own new keys and values.
    window: keys that a query sees, its own included; None: all up to its own.
    softcap: scores become softcap * tanh(score / softcap) once they are scaled; None: they stay.
    Returns [batch, tokens, heads, head_dim]; rows of padded tokens hold finite numbers without meaning.

    The new tokens are the last of the context. What the cache holds beyond context_lens never reaches the result,
    not even when it is NaN.
    """
    block_size = key_cache.shape[1]
    slots = slot_mapping // block_size, slot_mapping % block_size
    key_cache.index_put_(slots, key)
    value_cache.index_put_(slots, value)
    shape = _Shape(scale, window, softcap)
    if block_table is None:
        return _attend_to_new(query, key, value, query_lens, shape)

    def gather(blocks: Tensor) -> list[Tensor]:
        return [cache[blocks].flatten(1, 2) for cache in (key_cache, value_cache)]

    assert context_lens is not None
    return _attend_to_cached(query, gather, query_lens, context_lens, block_table, block_size, shape)


@canonical_op(
    "paged_attention_int8(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache,"
    " Tensor(c!) key_scales, Tensor(d!) value_scales, Tensor slot_mapping, Tensor? query_lens, Tensor? context_lens,"
    " Tensor? block_table, float scale, *, int? window=None, float? softcap=None) -> Tensor"
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
    *,
    window: int | None = None,
    softcap: float | None = None,
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
    shape = _Shape(scale, window, softcap)
    if block_table is None:
        return _attend_to_new(query, key, value, query_lens, shape)

    def gather(blocks: Tensor) -> list[Tensor]:
        return [
            (cache[blocks].float() * scales[blocks].unsqueeze(-1)).to(query.dtype).transpose(2, 3).flatten(1, 2)
            for cache, scales in ((key_cache, key_scales), (value_cache, value_scales))
        ]

    assert context_lens is not None
    return _attend_to_cached(query, gather, query_lens, context_lens, block_table, block_size, shape)


@dataclass(frozen=True)
class _Shape:
    """What becomes of the scores, and which of them count."""

    scale: float
    window: int | None
    softcap: float | None


def _visible_blocks(
    start: Tensor, tokens: int, block_table: Tensor, block_size: int, window: int | None
) -> tuple[Tensor, Tensor | None]:
    """The blocks that hold a key that one of `tokens` queries from `start` [batch] on may see, and the position of
    their first key; None: 0."""
    width = block_table.shape[1]
    if window is None:
        return block_table, None
    # Keys from the first query's oldest one to the last query's own, wherever the first of them stands in its block.
    count = (window - 1 + tokens + block_size - 2) // block_size + 1
    if count >= width:
        return block_table, None
    first_block = (start - (window - 1)).clamp(min=0) // block_size
    places = first_block[:, None] + torch.arange(count, device=start.device)
    # Places beyond the table stand for positions beyond the context, which no query sees.
    return block_table.gather(1, places.clamp(max=width - 1)), first_block * block_size


def _attend_to_new(query: Tensor, keys: Tensor, values: Tensor, query_lens: Tensor | None, shape: _Shape) -> Tensor:
    """Each query sees the keys of its own step up to its own."""
    batch, tokens = query.shape[:2]
    steps = torch.arange(tokens, device=query.device)
    lens = steps.new_full((batch,), tokens) if query_lens is None else query_lens
    window = shape.window
    if window is None or tokens <= 2 * window:
        return _attend_causally(query, keys, values, steps.expand(batch, tokens), steps, lens, shape)
    # A query in tile i of `window` tokens sees keys of the tiles i - 1 and i only.
    tiles = -(-tokens // window)
    padding = tiles * window - tokens

    def tiled(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, padding)).unflatten(1, (tiles, window))

    def with_previous(x: Tensor) -> Tensor:
        x = tiled(x)
        previous = torch.cat((x[:, :1], x[:, :-1]), dim=1)
        return torch.cat((previous, x), dim=2).flatten(0, 1)

    begins = torch.arange(tiles, device=query.device)[:, None] * window
    query_positions = (begins + torch.arange(window, device=query.device)).repeat(batch, 1)
    # Before the first tile there is none: its keys are given positions that no query sees.
    key_positions = (begins - window + torch.arange(2 * window, device=query.device)).repeat(batch, 1)
    attended = _attend_causally(
        tiled(query).flatten(0, 1),
        with_previous(keys),
        with_previous(values),
        query_positions,
        key_positions,
        lens.repeat_interleave(tiles),
        shape,
    )
    return attended.unflatten(0, (batch, tiles)).flatten(1, 2)[:, :tokens]


def _attend_to_cached(
    query: Tensor,
    gather: Callable[[Tensor], list[Tensor]],
    query_lens: Tensor | None,
    context_lens: Tensor,
    block_table: Tensor,
    block_size: int,
    shape: _Shape,
) -> Tensor:
    """Each query sees the keys of its sequence up to its own; the queries are the last of the context.

    gather: keys and values [batch, tokens, kv_heads, head_dim] of blocks [batch, width].
    """
    tokens = query.shape[1]
    start = context_lens - (tokens if query_lens is None else query_lens)
    blocks, first = _visible_blocks(start, tokens, block_table, block_size, shape.window)
    keys, values = gather(blocks)
    query_positions = start[:, None] + torch.arange(tokens, device=query.device)
    key_positions = torch.arange(keys.shape[1], device=query.device)
    if first is not None:
        key_positions = first[:, None] + key_positions
    return _attend_causally(query, keys, values, query_positions, key_positions, context_lens, shape)


def _attend_causally(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    lens: Tensor,
    shape: _Shape,
) -> Tensor:
    """Attention by positions: query_positions [batch, tokens], key_positions [keys] or [batch, keys], lens [batch]."""
    # Padded queries stand beyond the context: let them see what the last token sees, so that their softmax is defined.
    last_visible = torch.minimum(query_positions, (lens - 1)[:, None])[:, :, None]
    positions = key_positions if key_positions.dim() == 1 else key_positions[:, None, :]
    mask = positions <= last_visible  # [batch, tokens, keys]
    valid = key_positions < lens[:, None]
    if shape.window is not None:
        mask = mask & (positions > last_visible - shape.window) & (positions >= 0)
        mask = mask | ~mask.any(-1, keepdim=True)  # a tile of padding, which has no key of its row
        # Blocks that fell out of the window may hold anything by now.
        valid = valid & (key_positions >= 0) & (key_positions > last_visible[:, 0] - shape.window)
    valid = valid[:, :, None, None]
    return _attend(query, torch.where(valid, keys, 0), torch.where(valid, values, 0), mask, shape)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, shape: _Shape) -> Tensor:
    """Attention with the query heads that share a KV head as rows over it: keys and values are never repeated."""
    tokens, heads = query.shape[1:3]
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    rows = query.unflatten(2, (kv_heads, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)  # [b, kv, tokens * group, d]
    row_mask = mask[:, None, :, None, :].expand(-1, 1, -1, group, -1).flatten(2, 3)  # [b, 1, tokens * group, keys]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if tokens == 1 or shape.softcap is not None:
        # One token per row: matrix products share the work among threads where the fused kernel cannot.
        scores = torch.matmul(rows.float(), keys.float().transpose(2, 3)) * shape.scale
        if shape.softcap is not None:
            scores = torch.ops.gemma.softcap(scores, shape.softcap)
        weights = scores.masked_fill(~row_mask, -torch.inf).softmax(-1)
        attended = torch.matmul(weights, values.float()).to(query.dtype)
    else:
        attended = F.scaled_dot_product_attention(rows, keys, values, attn_mask=row_mask, scale=shape.scale)
    return attended.unflatten(2, (tokens, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)
