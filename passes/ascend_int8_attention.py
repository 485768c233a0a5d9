"""Select the attention kernels of the Atlas 800I A2 for an int8 cache."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.ascend.soc import AttentionChoice
from graph_model.graph import ModelGraph
from passes.ascend_attention import AscendAttention, Attention, fused_infer_attention

aten = torch.ops.aten

# FusedInferAttentionScore's mode for a scale per token and head, in blocks as the cache has them.
_PER_TOKEN_HEAD_PAGED = 5


@dataclass(frozen=True)
class AscendInt8Attention(AscendAttention):
    """DynamicQuant makes the new keys and values int8; FusedInferAttentionScore reads the int8 cache in decode.

    ::

        gemma.paged_attention_int8(q, k, v, key_cache, value_cache, key_scales, value_scales, slots, ...)
    ->
        k8, k_scales = npu_dynamic_quant(k), the same for values
        npu_scatter_pa_kv_cache(k8, v8, key_cache, value_cache, slots)
        npu_scatter_nd_update_(flat key_scales, places, k_scales), the same for values
        npu_fused_infer_attention_score(q, k, v, causal mask, query_lens, query_lens)                    prefill
        npu_fused_infer_attention_score(q, key_cache, value_cache, key_scales, value_scales, ...)        decode
        npu_fused_infer_attention_score(q, dequantised gathered blocks, causal mask, ...)                extend

    The places of the scales are computed once for all layers. Paged attention of several query tokens takes no int8
    cache, whatever the block size.
    """

    name: ClassVar[str] = "ascend_int8_attention"
    removes: ClassVar[tuple[object, ...]] = (ops.paged_attention_int8,)
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_dynamic_quant",
        "npu.npu_scatter_pa_kv_cache",
        "npu.npu_scatter_nd_update_",
        "air.npu_fused_infer_attention_score",
        "aten.index_select",
        "aten.permute",
        "aten.remainder.Scalar",
        "aten.sub.Tensor",
    )

    def applies(self, graph: ModelGraph) -> bool:
        return graph.quantisation is not None and graph.quantisation.kv8

    def write_cache(self, attention: Attention) -> None:
        a, call = attention, attention.call
        slots = a.shared("slots", lambda at: call(aten.reshape.default, a.slots, [-1], at=at))
        quantised = []
        for new, scales in zip((a.key, a.value), a.scales, strict=True):
            pair = call(torch.ops.npu.npu_dynamic_quant.default, new)
            q = call(aten.reshape.default, call(operator.getitem, pair, 0), [-1, a.kv_heads, a.head_dim])
            quantised.append(q)
            updates = call(aten.reshape.default, call(operator.getitem, pair, 1), [-1])
            places = a.shared("places of scales", lambda at: _places(a, at))
            call(torch.ops.npu.npu_scatter_nd_update_.default, _flat(a, scales), places, updates)
        caches = (a.key_cache, a.value_cache)
        call(torch.ops.npu.npu_scatter_pa_kv_cache.default, *quantised, *caches, slots, cache_mode="Norm")

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        a = attention
        if a.block_table is None:
            return fused_infer_attention(a, a.key, a.value, paged=False)
        pairs = zip((a.key_cache, a.value_cache), a.scales, strict=True)
        if not choice.paged:
            key, value = (_dequantised(a, *pair) for pair in pairs)
            return fused_infer_attention(a, key, value, paged=False)
        shape = [a.num_blocks, a.kv_heads, a.block_size]
        key_scales, value_scales = (a.call(aten.reshape.default, _flat(a, s), shape) for s in a.scales)
        return fused_infer_attention(
            a,
            a.blocks(a.key_cache),
            a.blocks(a.value_cache),
            paged=True,
            key_antiquant_scale=key_scales,
            value_antiquant_scale=value_scales,
            key_antiquant_mode=_PER_TOKEN_HEAD_PAGED,
            value_antiquant_mode=_PER_TOKEN_HEAD_PAGED,
        )


def _flat(attention: Attention, scales: fx.Node) -> fx.Node:
    """The scales as a vector: the only form in which the graph reads them, as it is the one that is written."""
    for user in scales.users:
        if user.target == aten.reshape.default:
            return user
    return attention.call(aten.reshape.default, scales, [-1])


def _places(attention: Attention, at: fx.Node) -> fx.Node:
    """Where in the vector of scales each new token's heads go, [tokens * kv_heads, 1].

    Slot s is token s % block_size of its block, so head h of it stands at (s - s % block_size) * kv_heads +
    h * block_size + s % block_size.
    """
    a = attention

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return a.call(target, *args, at=at, **kwargs)

    if a.kv_heads == 1:
        return call(aten.reshape.default, a.slots, [-1, 1])
    slots = call(aten.reshape.default, a.slots, [-1, 1])
    offsets = call(aten.remainder.Scalar, slots, a.block_size)
    blocks = call(aten.mul.Tensor, call(aten.sub.Tensor, slots, offsets), a.kv_heads)
    first = call(aten.add.Tensor, blocks, offsets)
    end = a.kv_heads * a.block_size
    heads = call(aten.arange.start_step, 0, end, a.block_size, dtype=torch.int64, device=torch.device("cpu"))
    return call(aten.reshape.default, call(aten.add.Tensor, first, heads), [-1, 1])


def _dequantised(attention: Attention, cache: fx.Node, scales: fx.Node) -> fx.Node:
    """The keys or values of each row's blocks in the model's dtype, [batch, width * block_size, kv_heads, head_dim]."""
    a, call = attention, attention.call
    gathered = call(aten.to.dtype, a.gathered(cache), torch.float32)
    by_head = a.gathered_blocks(call(aten.reshape.default, _flat(a, scales), [a.num_blocks, a.kv_heads, a.block_size]))
    if a.kv_heads > 1:
        by_head = call(aten.permute.default, by_head, [0, 2, 1])
    factor = call(aten.reshape.default, by_head, [a.batch, -1, a.kv_heads, 1])
    return call(aten.to.dtype, call(aten.mul.Tensor, gathered, factor), a.graph.dtype)
