"""Select the attention kernels of the Atlas 800I A2: paged cache writes and fused infer attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.ascend.ops.attention import BAND, CAUSAL
from graph_gemma.graph_model.ascend.ops.attention_choice import AttentionChoice, choose_attention
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import CausalMask
from graph_gemma.passes.ascend.operands import Attention
from graph_gemma.passes.ascend.unfused_attention import UNFUSED_OPS, gathered_tokens, unfused_attention
from graph_gemma.passes.ascend.visible_keys import VISIBLE_KEYS_OPS, hidden_in_blocks, int32_table, visible_blocks
from graph_gemma.passes.framework.contract import Matches, Pass, Tier
from graph_gemma.passes.framework.matches import per_model

aten = torch.ops.aten

# The form that sparse_mode takes the causal mask in, whatever the lengths.
CAUSAL_MASK_SIZE = 2048


@dataclass(frozen=True)
class AscendAttention(Pass):
    """Replaces every canonical attention; which way is taken is `attention_choice`'s answer."""

    chip: Chip
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.attentions)
    after: ClassVar[tuple[str, ...]] = ("paged_attention", "quantize_cache")
    removes: ClassVar[tuple[object, ...]] = (ops.paged_attention,)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        attention = Attention(graph, candidate)
        self.write_cache(attention)
        layer = graph.family.layer_index(candidate.meta["layer"]) or 0
        candidate.replace_all_uses_with(self.attend(attention, attention_choice(graph, self.chip, layer)))
        graph.graph.erase_node(candidate)

    def write_cache(self, attention: Attention) -> None:
        """Write the new keys and values into the caches."""
        raise NotImplementedError

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        """The attended values, [batch, tokens, heads, head_dim]."""
        raise NotImplementedError


@dataclass(frozen=True)
class AscendFusedAttention(AscendAttention):
    """ScatterPaKvCache writes the new keys and values, FusedInferAttentionScore attends, all in BSND.

    ::

        gemma.paged_attention(q, k, v, key_cache, value_cache, slots, query_lens, context_lens, block_table, scale)
    ->
        npu_scatter_pa_kv_cache(k, v, key_cache, value_cache, slots)
        npu_fused_infer_attention_score(q, k, v, causal mask, query_lens, query_lens)                    prefill
        npu_fused_infer_attention_score(q, key_cache, value_cache, context_lens, block_table)            decode
        the same with the causal mask and query_lens; over gathered blocks where paging is not legal     extend

    Where paging is legal for several query tokens, prefill is paged as well, its block table made from the slots. A
    window of W is the band of pre_tokens = W - 1; with one query token, where the op ignores the band, it is a mask
    over the window's blocks. With a soft-cap, which the op does not have, attention is written out over fresh or
    gathered keys. Tables and masks are shared by all layers.
    """

    name: ClassVar[str] = "ascend_fused_attention"
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_scatter_pa_kv_cache",
        "air.npu_fused_infer_attention_score",
        "aten.floor_divide",
        "aten.index_select",
        *VISIBLE_KEYS_OPS,
        *UNFUSED_OPS,
    )

    def idle(self, graph: ModelGraph) -> str:
        return "the cache is int8" if graph.quantization is not None and graph.quantization.kv8 else ""

    def write_cache(self, attention: Attention) -> None:
        slots = attention.shared(
            f"{attention.slots.name}, flat",
            lambda at: attention.call(aten.reshape.default, attention.slots, [-1], at=at),
        )
        tokens = [-1, attention.kv_heads, attention.head_dim]
        key, value = (attention.call(aten.reshape.default, new, tokens) for new in (attention.key, attention.value))
        caches = (attention.key_cache, attention.value_cache)
        attention.call(torch.ops.npu.npu_scatter_pa_kv_cache.default, key, value, *caches, slots, cache_mode="Norm")

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        caches = (attention.key_cache, attention.value_cache)
        if choice.op == "decomposed":
            return unfused_attention(attention, lambda: _gathered_by_head(attention, caches))
        if attention.block_table is None and not choice.paged:
            key, value = attention.key, attention.value
        else:
            view = _blocks if choice.paged else _gathered
            key, value = (view(attention, cache) for cache in caches)
        return fused_infer_attention(attention, key, value, choice.paged)


def fused_infer_attention(
    attention: Attention,
    key: fx.Node,
    value: fx.Node,
    paged: bool,
    query: fx.Node | None = None,
    input_layout: str = "BSND",
    **options: Any,
) -> fx.Node:
    """FusedInferAttentionScore of the query over keys and values in BSND, or over caches through the block table.

    query: in place of the attention's own, where it and the result have another layout.
    """
    a, phase = attention, attention.graph.bucket.phase
    options["actual_seq_lengths_kv"] = a.query_lens if a.block_table is None else a.context_lens
    if phase == "decode" or (phase == "extend" and not paged):
        options["actual_seq_lengths_kv"] = visible_blocks(a)[1]
    if paged:
        options["block_table"] = int32_table(a)
        options["block_size"] = a.block_size
    if phase != "decode":
        options["atten_mask"] = causal_mask(a.graph)
        options["actual_seq_lengths"] = a.query_lens
        options["sparse_mode"] = CAUSAL
        if a.window is not None:
            options.update(sparse_mode=BAND, pre_tokens=a.window - 1, next_tokens=0)
    elif a.window is not None:
        options["atten_mask"] = hidden_in_blocks(a)
    result = a.call(
        torch.ops.air.npu_fused_infer_attention_score.default,
        query or a.query,
        key,
        value,
        **options,
        num_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        scale=a.scale,
        input_layout=input_layout,
    )
    return a.call(operator.getitem, result, 0)


def attention_choice(graph: ModelGraph, chip: Chip, layer: int = 0) -> AttentionChoice:
    """How the attention of a layer runs on the chip, and why."""
    attention, bucket = graph.family.layers[layer].attention, graph.bucket
    return choose_attention(
        chip,
        bucket.phase,
        graph.cache_config.block_size,
        graph.shard.heads(attention),
        graph.shard.kv_heads(attention),
        attention.head_dim,
        bucket.batch,
        int8_cache=graph.quantization is not None and graph.quantization.kv8,
        window=attention.window,
        softcap=attention.softcap,
    )


def causal_mask(graph: ModelGraph) -> fx.Node:
    """The causal mask's weight, one for the whole graph."""
    return graph.add_weight("causal_mask", CausalMask(CAUSAL_MASK_SIZE))


def _blocks(attention: Attention, cache: fx.Node) -> fx.Node:
    """A cache as [blocks, block_size, kv_heads * head_dim]."""
    a = attention
    return a.call(aten.reshape.default, cache, [a.num_blocks, a.block_size, a.kv_heads * a.head_dim])


def _gathered(attention: Attention, cache: fx.Node) -> fx.Node:
    """The keys or values of each row's visible blocks, [batch, tokens of them, kv_heads, head_dim]."""
    a = attention
    table, _ = visible_blocks(a)
    flat = a.shared(f"{table.name}, flat", lambda at: a.call(aten.reshape.default, table, [-1], at=at))
    blocks = a.call(aten.index_select.default, cache, 0, flat)
    return a.call(aten.reshape.default, blocks, [a.batch, -1, a.kv_heads, a.head_dim])


def _gathered_by_head(attention: Attention, caches: tuple[fx.Node, fx.Node]) -> list[fx.Node]:
    """The keys and the values that a step reads, [batch, kv_heads, keys, head_dim]."""
    a = attention
    flat = [a.call(aten.reshape.default, cache, [-1, a.kv_heads * a.head_dim]) for cache in caches]
    return [gathered_tokens(a, cache, by_head=True) for cache in flat]
