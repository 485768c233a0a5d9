"""Select the attention kernels of the Atlas 300I DUO: flat caches, and whichever attention moves fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model.ascend.ops.attention_choice import AttentionChoice
from graph_gemma.passes.ascend.attention import AscendAttention
from graph_gemma.passes.ascend.operands import Attention
from graph_gemma.passes.ascend.unfused_attention import UNFUSED_OPS, gathered_tokens, unfused_attention
from graph_gemma.passes.ascend.visible_keys import (
    VISIBLE_KEYS_OPS,
    as_int32,
    hidden_in_blocks,
    hidden_keys,
    visible_blocks,
)

aten = torch.ops.aten
_UNLIMITED = 2147483647


@dataclass(frozen=True)
class AscendFlatAttention(AscendAttention):
    """ScatterNdUpdate writes the caches as matrices of one token per row; `choose_attention` says how to attend.

    ::

        gemma.paged_attention(q, k, v, key_cache, value_cache, slots, query_lens, context_lens, block_table, scale)
    ->
        npu_scatter_nd_update_(flat key_cache, slots, k), the same for values
        ascend.incre_flash_attention(q, caches, context_lens, block_table)      decode; or with query heads as rows
        softmax(q * scale @ gathered keys, masked) @ gathered values            decode, where that moves fewer bytes
        npu_prompt_flash_attention(q, k, v, mask)                               prefill, with repeated key heads
        npu_prompt_flash_attention(q, gathered keys and values, mask)           extend

    Blocks are gathered token by token. What they hold beyond a row's context may be anything, NaN too, which no mask of
    the weights keeps out; so the row's last token is gathered in its place. With a window only what it shows is
    gathered, or read by IncreFlashAttention under a mask. With a soft-cap, which no op has, attention is written out
    in every phase. Places of tokens and masks are made in the graph, once for all layers.
    """

    name: ClassVar[str] = "ascend_flat_attention"
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_scatter_nd_update_",
        "npu.npu_prompt_flash_attention",
        "ascend.incre_flash_attention",
        "aten.expand",
        "aten.index_select",
        *VISIBLE_KEYS_OPS,
        *UNFUSED_OPS,
    )

    def write_cache(self, attention: Attention) -> None:
        slots = attention.shared(
            f"{attention.slots.name}, flat",
            lambda at: attention.call(aten.reshape.default, attention.slots, [-1, 1], at=at),
        )
        for new, cache in ((attention.key, attention.key_cache), (attention.value, attention.value_cache)):
            rows = attention.call(aten.reshape.default, new, [-1, attention.kv_heads * attention.head_dim])
            attention.call(torch.ops.npu.npu_scatter_nd_update_.default, _flat(attention, cache), slots, rows)

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        if choice.op == "decomposed":
            return _decomposed(attention)
        if attention.graph.bucket.phase != "decode":
            return _prompt(attention)
        return _incremental(attention, choice.fold)


def _flat(attention: Attention, cache: fx.Node) -> fx.Node:
    """The cache as a matrix of one token per row: the only form in which the graph reads it."""
    for user in cache.users:
        if user.target == aten.reshape.default:
            return user
    rows = attention.num_blocks * attention.block_size
    return attention.call(aten.reshape.default, cache, [rows, attention.kv_heads * attention.head_dim])


def _decomposed(attention: Attention) -> fx.Node:
    """Attention written out, over the step's own keys and values or over gathered ones."""
    a = attention
    caches = (_flat(a, cache) for cache in (a.key_cache, a.value_cache))
    return unfused_attention(a, lambda: [gathered_tokens(a, cache, by_head=True) for cache in caches])


def _incremental(attention: Attention, fold: int) -> fx.Node:
    """IncreFlashAttention; with fold > 1 the query heads of a key head become rows, each with its row's blocks."""
    a, call = attention, attention.call
    query, (table, lens) = a.query, visible_blocks(a)
    heads = a.heads // fold
    if fold > 1:
        grouped = call(aten.reshape.default, query, [a.batch, a.kv_heads, fold, a.head_dim])
        query = call(aten.permute.default, grouped, [0, 2, 1, 3]) if a.kv_heads > 1 else grouped
        table, lens = (_repeated(a, source, fold) for source in (table, lens))
    options = {}
    if a.window is not None:
        hidden = hidden_in_blocks(a)
        options["atten_mask"] = _repeated(a, hidden, fold) if fold > 1 else hidden
    query = call(aten.reshape.default, query, [a.batch * fold, 1, heads * a.head_dim])
    int32 = as_int32(a, table)
    blocks = [a.num_blocks, a.block_size, a.kv_heads * a.head_dim]
    caches = [call(aten.reshape.default, _flat(a, cache), blocks) for cache in (a.key_cache, a.value_cache)]
    result = call(
        torch.ops.ascend.incre_flash_attention.default,
        query,
        *caches,
        lens,
        **options,
        block_table=int32,
        num_heads=heads,
        num_key_value_heads=a.kv_heads,
        scale=a.scale,
        input_layout="BSH",
        block_size=a.block_size,
    )
    if fold > 1 and a.kv_heads > 1:
        result = call(aten.reshape.default, result, [a.batch, fold, a.kv_heads, a.head_dim])
        result = call(aten.permute.default, result, [0, 2, 1, 3])
    return call(aten.reshape.default, result, [a.batch, 1, a.heads, a.head_dim])


def _prompt(attention: Attention) -> fx.Node:
    """PromptFlashAttention over the fresh keys and values, or over gathered blocks."""
    a, call = attention, attention.call
    if a.block_table is None:
        keys, values = a.key, a.value
    else:
        caches = (_flat(a, cache) for cache in (a.key_cache, a.value_cache))
        keys, values = (gathered_tokens(a, cache, by_head=False) for cache in caches)
    mask = _prompt_mask(a)
    size = a.heads * a.head_dim
    query = call(aten.reshape.default, a.query, [a.batch, a.tokens, size])
    keys, values = (_head_per_query(a, x) for x in (keys, values))
    result = call(
        torch.ops.npu.npu_prompt_flash_attention.default,
        query,
        keys,
        values,
        atten_mask=mask,
        num_heads=a.heads,
        scale_value=a.scale,
        next_tokens=_UNLIMITED,
        input_layout="BSH",
        num_key_value_heads=0,
    )
    return call(aten.reshape.default, result, [a.batch, a.tokens, a.heads, a.head_dim])


def _head_per_query(attention: Attention, x: fx.Node) -> fx.Node:
    """Keys or values [batch, tokens, kv_heads, head_dim] as [batch, tokens, heads * head_dim], key heads repeated."""
    a, call = attention, attention.call
    batch, tokens = x.meta["val"].shape[:2]
    group = a.heads // a.kv_heads
    if group > 1:
        x = call(aten.unsqueeze.default, x, 3)
        x = call(aten.expand.default, x, [batch, tokens, a.kv_heads, group, a.head_dim])
    return call(aten.reshape.default, x, [batch, tokens, a.heads * a.head_dim])


def _repeated(attention: Attention, x: fx.Node, times: int) -> fx.Node:
    """Each row of an input `times` times, one after the other; shared by all layers."""
    shape = list(x.meta["val"].shape)

    def make(at: fx.Node) -> fx.Node:
        row = attention.call(aten.unsqueeze.default, x, 1, at=at)
        rows = attention.call(aten.expand.default, row, [shape[0], times, *shape[1:]], at=at)
        return attention.call(aten.reshape.default, rows, [shape[0] * times, *shape[1:]], at=at)

    return attention.shared(f"{x.name}, repeated", make)


def _prompt_mask(attention: Attention) -> fx.Node:
    """bool [batch or 1, 1, tokens, keys]: true where a query may not see a key."""
    a = attention
    hidden = hidden_keys(a)
    return a.shared(f"{hidden.name}, for all heads", lambda at: a.call(aten.unsqueeze.default, hidden, 1, at=at))
