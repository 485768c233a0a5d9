"""Select the attention kernels of the Atlas 300I DUO: flat caches, and whichever attention moves fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_model.ascend.soc import AttentionChoice
from graph_model.graph import ModelGraph
from passes.ascend_attention import AscendAttention, Attention

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

    What gathered blocks hold beyond a row's context is replaced by 0, as it may be anything. Masks are made in the
    graph, once for all layers.
    """

    name: ClassVar[str] = "ascend_flat_attention"
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_scatter_nd_update_",
        "npu.npu_prompt_flash_attention",
        "ascend.incre_flash_attention",
        "ascend.batch_matmul",
        "aten.expand",
        "aten.ge.Tensor",
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
    keys, values = _gathered_pair(a, zero_keys=False)
    width = keys.meta["val"].shape[1]
    scaled = call(aten.mul.Tensor, a.query, a.scale)
    scaled.meta["attribute"] = "softmax_scale"
    if a.kv_heads == 1:
        shape, mask_shape = [a.batch, a.heads, a.head_dim], [a.batch, 1, width]
        keys, values = (call(aten.reshape.default, x, [a.batch, width, a.head_dim]) for x in (keys, values))
    else:
        group = a.heads // a.kv_heads
        shape, mask_shape = [a.batch, a.kv_heads, group, a.head_dim], [a.batch, 1, 1, width]
        keys, values = (call(aten.permute.default, x, [0, 2, 1, 3]) for x in (keys, values))
    query = call(aten.reshape.default, scaled, shape)
    scores = call(torch.ops.ascend.batch_matmul.default, query, keys, True)
    hidden = _beyond_context(a, mask_shape)
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
        keys, values = _gathered_pair(a, zero_keys=True)
    width = keys.meta["val"].shape[1]
    mask = a.shared("causal mask", lambda at: _causal_mask(a, width, at))
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


def _gathered_pair(attention: Attention, zero_keys: bool) -> tuple[fx.Node, fx.Node]:
    """Keys and values of each row's blocks, [batch, width * block_size, kv_heads, head_dim], 0 beyond its context.

    Keys may keep what they hold where their scores are replaced.
    """
    a, call = attention, attention.call
    pair = []
    for cache, zero in ((a.key_cache, zero_keys), (a.value_cache, True)):
        gathered = a.gathered(a.blocks(_flat(a, cache)))
        if zero:
            mask = _beyond_context(a, [a.batch, gathered.meta["val"].shape[1], 1, 1])
            gathered = call(aten.masked_fill.Scalar, gathered, mask, 0.0)
        pair.append(gathered)
    return pair[0], pair[1]


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
    """bool [batch, width * block_size] under another shape: true where a row's blocks hold no token of it."""
    a = attention
    table, lens = a.block_table, a.context_lens
    assert isinstance(table, fx.Node)
    width = table.meta["val"].shape[1] * a.block_size

    def make(at: fx.Node) -> fx.Node:
        column = a.call(aten.unsqueeze.default, lens, 1, at=at)
        return a.call(aten.ge.Tensor, _range(a.graph, width, at), column, at=at)

    hidden = a.shared("beyond context", make)
    return a.shared(f"beyond context {shape}", lambda at: a.call(aten.reshape.default, hidden, shape, at=at))


def _causal_mask(attention: Attention, width: int, at: fx.Node) -> fx.Node:
    """bool [batch, 1, tokens, width]: true where a query may not see a key. Padded queries see the whole context."""
    a = attention

    def call(target: Any, *args: Any) -> fx.Node:
        return a.call(target, *args, at=at)

    lens = a.query_lens if a.block_table is None else a.context_lens
    last = call(aten.unsqueeze.default, call(aten.sub.Tensor, lens, 1), 1)
    positions = _range(a.graph, a.tokens, at)
    if a.block_table is not None:
        start = call(aten.unsqueeze.default, call(aten.sub.Tensor, a.context_lens, a.query_lens), 1)
        positions = call(aten.add.Tensor, start, positions)
    visible = call(aten.unsqueeze.default, call(aten.minimum.default, positions, last), 2)
    hidden = call(aten.gt.Tensor, _range(a.graph, width, at), visible)
    return call(aten.unsqueeze.default, hidden, 1)


def _range(graph: ModelGraph, size: int, at: fx.Node) -> fx.Node:
    return graph.insert(aten.arange.start_step, 0, size, 1, dtype=torch.int64, device=torch.device("cpu"), at=at)
