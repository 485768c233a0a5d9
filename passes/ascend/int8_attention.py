"""Select the attention kernels of the Atlas 800I A2 for an int8 cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.ascend.ops.attention_choice import AttentionChoice
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.ascend.attention import AscendAttention, fused_infer_attention
from graph_gemma.passes.ascend.operands import Attention
from graph_gemma.passes.ascend.unfused_attention import UNFUSED_OPS, unfused_attention
from graph_gemma.passes.ascend.visible_keys import VISIBLE_KEYS_OPS, token_places, visible_blocks

aten = torch.ops.aten

# FusedInferAttentionScore's mode for a scale per token and head, in blocks as the cache has them.
_PER_TOKEN_HEAD_PAGED = 5


@dataclass(frozen=True)
class AscendInt8Attention(AscendAttention):
    """One kernel each quantizes and writes the new keys and values; FusedInferAttentionScore reads int8 in decode.

    ::

        gemma.paged_attention_int8(q, k, v, key_cache, value_cache, key_scales, value_scales, slots, ...)
    ->
        ascend.dynamic_quant_scatter_(rows of key_cache, rows of key_scales, places, rows of k), the same for values
        npu_fused_infer_attention_score(q, k, v, causal mask, query_lens, query_lens)                    prefill
        npu_fused_infer_attention_score(q, key_cache, value_cache, key_scales, value_scales, ...)        decode
        npu_fused_infer_attention_score(q, dequantized gathered rows, causal mask, ...)                  extend

    A row is one head of one token. Where rows go, and which rows the block table names, is computed once for all
    layers. Paged attention of several query tokens takes no int8 cache, whatever the block size. With one query token
    the heads of query and result are put before the tokens, which moves nothing: only so are caches with heads before
    tokens taken.
    """

    name: ClassVar[str] = "ascend_int8_attention"
    removes: ClassVar[tuple[object, ...]] = (ops.paged_attention_int8,)
    introduces: ClassVar[tuple[str, ...]] = (
        "ascend.dynamic_quant_scatter_",
        "air.npu_fused_infer_attention_score",
        "aten.index_select",
        "aten.full",
        *VISIBLE_KEYS_OPS,
        *UNFUSED_OPS,
    )

    def idle(self, graph: ModelGraph) -> str:
        return "" if graph.quantization is not None and graph.quantization.kv8 else "the cache is not quantized"

    def write_cache(self, attention: Attention) -> None:
        a = attention
        places = a.shared(f"places of {a.slots.name}", lambda at: _places(a, at))
        for new, cache, scales in zip((a.key, a.value), (a.key_cache, a.value_cache), a.scales, strict=True):
            rows = a.call(aten.reshape.default, new, [-1, 1, a.head_dim])
            target = torch.ops.ascend.dynamic_quant_scatter_.default
            a.call(target, _rows(a, cache, a.head_dim), _rows(a, scales, 1), places, rows)

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        a = attention
        pairs = list(zip((a.key_cache, a.value_cache), a.scales, strict=True))
        if choice.op == "decomposed":
            by_head = [a.batch, a.kv_heads, -1, a.head_dim]

            def cached() -> list[fx.Node]:
                places = token_places(a, by_head=True, heads_first=True)
                return [_dequantized(a, *pair, places, by_head) for pair in pairs]

            return unfused_attention(a, cached)
        if a.block_table is None:
            return fused_infer_attention(a, a.key, a.value, paged=False)
        if not choice.paged:
            table, _ = visible_blocks(a)
            named = a.shared(f"{table.name}, rows", lambda at: _named_rows(a, table, at))
            shape = [a.batch, -1, a.kv_heads, a.head_dim]
            key, value = (_dequantized(a, *pair, named, shape) for pair in pairs)
            return fused_infer_attention(a, key, value, paged=False)
        blocks = [a.num_blocks, a.kv_heads, a.block_size]
        (key, key_scales), (value, value_scales) = (
            (
                a.call(aten.reshape.default, _rows(a, cache, a.head_dim), [*blocks, a.head_dim]),
                a.call(aten.reshape.default, _rows(a, scales, 1), blocks),
            )
            for cache, scales in pairs
        )
        result = fused_infer_attention(
            a,
            key,
            value,
            paged=True,
            query=a.call(aten.reshape.default, a.query, [a.batch, a.heads, 1, a.head_dim]),
            input_layout="BNSD",
            key_antiquant_scale=key_scales,
            value_antiquant_scale=value_scales,
            key_antiquant_mode=_PER_TOKEN_HEAD_PAGED,
            value_antiquant_mode=_PER_TOKEN_HEAD_PAGED,
        )
        return a.call(aten.reshape.default, result, [a.batch, 1, a.heads, a.head_dim])


def _rows(attention: Attention, cache: fx.Node, size: int) -> fx.Node:
    """The cache as [rows, 1, size]: the only form in which the graph reads it, as it is the one that is written."""
    for user in cache.users:
        if user.target == aten.reshape.default:
            return user
    return attention.call(aten.reshape.default, cache, [-1, 1, size])


def _places(attention: Attention, at: fx.Node) -> fx.Node:
    """The rows of the cache that each new token's heads go to, and 0, [tokens * kv_heads, 2].

    Slot s is token s % block_size of its block, so head h of it is row (s - s % block_size) * kv_heads +
    h * block_size + s % block_size.
    """
    a = attention

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return a.call(target, *args, at=at, **kwargs)

    rows = call(aten.reshape.default, a.slots, [-1, 1])
    if a.kv_heads > 1:
        offsets = call(aten.remainder.Scalar, rows, a.block_size)
        blocks = call(aten.mul.Tensor, call(aten.sub.Tensor, rows, offsets), a.kv_heads)
        first = call(aten.add.Tensor, blocks, offsets)
        rows = call(aten.reshape.default, call(aten.add.Tensor, first, _heads(a, at)), [-1, 1])
    count = a.batch * a.tokens * a.kv_heads
    zeros = call(aten.full.default, [count, 1], 0, dtype=torch.int64, device=torch.device("cpu"))
    return call(aten.cat.default, [rows, zeros], -1)


def _heads(attention: Attention, at: fx.Node) -> fx.Node:
    """How many rows behind the first head's each head's row stands, [kv_heads]."""
    a = attention
    target = aten.arange.start_step
    return a.call(
        target, 0, a.kv_heads * a.block_size, a.block_size, dtype=torch.int64, device=torch.device("cpu"), at=at
    )


def _named_rows(attention: Attention, table: fx.Node, at: fx.Node) -> fx.Node:
    """The rows of the blocks in a block table: of its entries, of their tokens, of all heads."""
    a = attention

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return a.call(target, *args, at=at, **kwargs)

    first = call(aten.mul.Tensor, call(aten.reshape.default, table, [-1, 1, 1]), a.kv_heads * a.block_size)
    tokens = call(aten.arange.start_step, 0, a.block_size, 1, dtype=torch.int64, device=torch.device("cpu"))
    rows = call(aten.add.Tensor, first, call(aten.reshape.default, tokens, [-1, 1]))
    if a.kv_heads > 1:
        rows = call(aten.add.Tensor, rows, _heads(a, at))
    return call(aten.reshape.default, rows, [-1])


def _dequantized(attention: Attention, cache: fx.Node, scales: fx.Node, named: fx.Node, shape: list[int]) -> fx.Node:
    """The keys or values in the named rows of a cache, in the model's dtype and the shape that is asked for."""
    a, call = attention, attention.call
    integers, factors = (
        call(aten.index_select.default, call(aten.reshape.default, _rows(a, x, size), [-1, size]), 0, named)
        for x, size in ((cache, a.head_dim), (scales, 1))
    )
    wide = call(aten.mul.Tensor, call(aten.to.dtype, integers, torch.float32), factors)
    return call(aten.reshape.default, call(aten.to.dtype, wide, a.graph.dtype), shape)
