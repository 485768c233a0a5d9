"""Select the attention kernels of the Atlas 300I DUO: flat caches, and whichever attention moves fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_model.ascend.ops.attention_choice import AttentionChoice
from graph_model.graph import ModelGraph
from passes.ascend.attention import AscendAttention, Attention

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
    the weights keeps out; so the row's last token is gathered in its place. Places of tokens and masks are made in the
    graph, once for all layers.
    """

    name: ClassVar[str] = "ascend_flat_attention"
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_scatter_nd_update_",
        "npu.npu_prompt_flash_attention",
        "ascend.incre_flash_attention",
        "ascend.batch_matmul",
        "aten.expand",
        "aten.gather",
        "aten.gt.Tensor",
        "aten.index_select",
        "aten.masked_fill.Scalar",
        "aten.minimum",
        "aten.permute",
        "aten.softmax.int",
        "aten.sub.Tensor",
    )

    def write_cache(self, attention: Attention) -> None:
        slots = attention.shared(
            "slots", lambda at: attention.call(aten.reshape.default, attention.slots, [-1, 1], at=at)
        )
        for new, cache in ((attention.key, attention.key_cache), (attention.value, attention.value_cache)):
            rows = attention.call(aten.reshape.default, new, [-1, attention.kv_heads * attention.head_dim])
            attention.call(torch.ops.npu.npu_scatter_nd_update_.default, _flat(attention, cache), slots, rows)

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        if attention.graph.bucket.phase != "decode":
            return _prompt(attention)
        return _decomposed(attention) if choice.op == "decomposed" else _incremental(attention, choice.fold)


def _flat(attention: Attention, cache: fx.Node) -> fx.Node:
    """The cache as a matrix of one token per row: the only form in which the graph reads it."""
    for user in cache.users:
        if user.target == aten.reshape.default:
            return user
    rows = attention.num_blocks * attention.block_size
    return attention.call(aten.reshape.default, cache, [rows, attention.kv_heads * attention.head_dim])


def _incremental(attention: Attention, fold: int) -> fx.Node:
    """IncreFlashAttention; with fold > 1 the query heads of a key head become rows, each with its row's blocks."""
    a, call = attention, attention.call
    query, table, lens = a.query, a.block_table, a.context_lens
    assert isinstance(table, fx.Node)
    assert isinstance(lens, fx.Node)
    heads = a.heads // fold
    if fold > 1:
        grouped = call(aten.reshape.default, query, [a.batch, a.kv_heads, fold, a.head_dim])
        query = call(aten.permute.default, grouped, [0, 2, 1, 3]) if a.kv_heads > 1 else grouped
        table, lens = (_repeated(a, source, fold) for source in (table, lens))
    query = call(aten.reshape.default, query, [a.batch * fold, 1, heads * a.head_dim])
    int32 = a.shared("table", lambda at: call(aten.to.dtype, table, torch.int32, at=at))
    caches = [a.blocks(_flat(a, cache)) for cache in (a.key_cache, a.value_cache)]
    result = call(
        torch.ops.ascend.incre_flash_attention.default,
        query,
        *caches,
        lens,
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


def _decomposed(attention: Attention) -> fx.Node:
    """One query token per row over its gathered blocks, written out; softmax in float32."""
    a, call = attention, attention.call
    keys, values = (_gathered(a, cache, by_head=True) for cache in (a.key_cache, a.value_cache))
    shape = [a.batch, a.kv_heads, a.heads // a.kv_heads, a.head_dim]
    scaled = call(aten.mul.Tensor, a.query, a.scale)
    scaled.meta["attribute"] = "softmax_scale"
    query = call(aten.reshape.default, scaled, shape)
    scores = call(torch.ops.ascend.batch_matmul.default, query, keys, True)
    hidden = _beyond_context(a, [a.batch, 1, 1, keys.meta["val"].shape[2]])
    masked = call(aten.masked_fill.Scalar, call(aten.to.dtype, scores, torch.float32), hidden, float("-inf"))
    weights = call(aten.to.dtype, call(aten.softmax.int, masked, -1), a.graph.dtype)
    result = call(torch.ops.ascend.batch_matmul.default, weights, values)
    return call(aten.reshape.default, result, [a.batch, 1, a.heads, a.head_dim])


def _prompt(attention: Attention) -> fx.Node:
    """PromptFlashAttention over the fresh keys and values, or over gathered blocks."""
    a, call = attention, attention.call
    if a.block_table is None:
        keys, values = a.key, a.value
    else:
        keys, values = (_gathered(a, cache, by_head=False) for cache in (a.key_cache, a.value_cache))
    width = keys.meta["val"].shape[1]
    mask = _causal_mask(a, width)
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


def _gathered(attention: Attention, cache: fx.Node, by_head: bool) -> fx.Node:
    """Keys or values of each row's blocks, [batch, width * block_size, kv_heads, head_dim], its last token beyond its
    context; by_head: [batch, kv_heads, width * block_size, head_dim]."""
    a, call = attention, attention.call
    assert isinstance(a.block_table, fx.Node)
    width = a.block_table.meta["val"].shape[1] * a.block_size
    source = _flat(a, cache)
    split = by_head and a.kv_heads > 1
    if split:
        source = call(aten.reshape.default, source, [-1, a.head_dim])
    gathered = call(aten.index_select.default, source, 0, _places(a, width, split))
    shape = [a.kv_heads, width] if by_head else [width, a.kv_heads]
    return call(aten.reshape.default, gathered, [a.batch, *shape, a.head_dim])


def _places(attention: Attention, width: int, by_head: bool) -> fx.Node:
    """int64, flat: where the cache holds each token of each row's blocks, the row's last token beyond its context.

    Rows of the cache as a matrix of one token per row; by_head: of one token and head per row, heads before tokens.
    """
    a = attention
    tokens, last = _positions(a, width), _last_token(a)

    def make(at: fx.Node) -> fx.Node:
        def call(target: Any, *args: Any) -> fx.Node:
            return a.call(target, *args, at=at)

        starts = call(aten.unsqueeze.default, call(aten.mul.Tensor, a.block_table, a.block_size), 2)
        slots = call(aten.add.Tensor, starts, _range(a.graph, a.block_size, at))
        slots = call(aten.reshape.default, slots, [a.batch, width])
        places = call(aten.gather.default, slots, 1, call(aten.minimum.default, tokens, last))
        if by_head:
            first = call(aten.unsqueeze.default, call(aten.mul.Tensor, places, a.kv_heads), 1)
            heads = call(aten.unsqueeze.default, _range(a.graph, a.kv_heads, at), 1)
            places = call(aten.add.Tensor, first, heads)
        return call(aten.reshape.default, places, [-1])

    return a.shared("places", make)


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


def _beyond_context(attention: Attention, shape: list[int]) -> fx.Node:
    """bool, [batch, shape[-1]] under another shape: true where a row's blocks hold no token of it."""
    a = attention
    tokens, last = _positions(a, shape[-1]), _last_token(a)

    def make(at: fx.Node) -> fx.Node:
        return a.call(aten.reshape.default, a.call(aten.gt.Tensor, tokens, last, at=at), shape, at=at)

    return a.shared("beyond context", make)


def _causal_mask(attention: Attention, width: int) -> fx.Node:
    """bool [batch, 1, tokens, width]: true where a query may not see a key. Padded queries see the whole context."""
    a = attention
    keys, last = _positions(a, width), _last_token(a)

    def make(at: fx.Node) -> fx.Node:
        def call(target: Any, *args: Any) -> fx.Node:
            return a.call(target, *args, at=at)

        if a.block_table is None:
            queries = keys
        else:
            start = call(aten.unsqueeze.default, call(aten.sub.Tensor, a.context_lens, a.query_lens), 1)
            queries = call(aten.add.Tensor, start, _range(a.graph, a.tokens, at))
        visible = call(aten.unsqueeze.default, call(aten.minimum.default, queries, last), 2)
        return call(aten.unsqueeze.default, call(aten.gt.Tensor, keys, visible), 1)

    return a.shared("causal mask", make)


def _positions(attention: Attention, width: int) -> fx.Node:
    """int64 [width]: 0, 1, ..."""
    return attention.shared(f"positions {width}", lambda at: _range(attention.graph, width, at))


def _last_token(attention: Attention) -> fx.Node:
    """int64 [batch, 1]: the position of each row's last token."""
    a = attention
    lens = a.query_lens if a.block_table is None else a.context_lens
    return a.shared(
        "last token",
        lambda at: a.call(aten.unsqueeze.default, a.call(aten.sub.Tensor, lens, 1, at=at), 1, at=at),
    )


def _range(graph: ModelGraph, size: int, at: fx.Node) -> fx.Node:
    return graph.insert(aten.arange.start_step, 0, size, 1, dtype=torch.int64, device=torch.device("cpu"), at=at)
