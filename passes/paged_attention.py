"""Attention over whole sequences becomes attention over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.bucket import pool_input
from graph_gemma.graph_model.families import Attention
from graph_gemma.graph_model.families.definition import attend
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier
from graph_gemma.passes.framework.match import match
from graph_gemma.passes.framework.matches import per_model
from graph_gemma.passes.recognize import Like, replace_match, trace_pattern

aten = torch.ops.aten


@dataclass(frozen=True)
class PagedAttention(Pass):
    """Attention becomes paged attention; adds caches, block table and lengths.

    It is the one pass that changes what a step means. Before it, a graph reads whole sequences, as `attend` of the
    definition computes it for the layer's description. After it, a graph reads the next tokens of sequences whose
    earlier keys and values lie in blocks::

        gemma.paged_attention(q, k, v, key_cache_i, value_cache_i, slot_mapping, query_lens, context_lens, block_table,
                              scale, window=window, softcap=softcap)

    Window and soft-cap are left out where the layer has none. Layers with a window have slots and blocks of their own,
    window_slot_mapping and window_block_table.
    """

    name: ClassVar[str] = "paged_attention"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.attentions)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (
        aten.scaled_dot_product_attention.default,
        aten.softmax.int,
        aten.transpose.int,
    )

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.scaled_dot_product_attention.default, aten.softmax.int)

    def prepare(self, graph: ModelGraph) -> None:
        bucket = graph.bucket
        with graph.fake_mode:
            slots = torch.empty(bucket.batch, bucket.chunk, dtype=torch.int64)
            lens = torch.empty(bucket.batch, dtype=torch.int64)
            table = torch.empty(bucket.batch, bucket.max_blocks_per_seq, dtype=torch.int64)
        for index, layer in enumerate(graph.family.layers):
            if graph.family.cache_layer(index) == index:
                shape = graph.cache_config.shape(layer.attention, graph.shard.kv_heads(layer.attention))
                with graph.fake_mode:
                    cache = torch.empty(shape, dtype=graph.dtype)
                graph.add_placeholder(f"key_cache_{index}", "cache", cache)
                graph.add_placeholder(f"value_cache_{index}", "cache", cache)
        for window in graph.family.pools:
            graph.add_placeholder(pool_input("slot_mapping", window), "input", slots)
        if bucket.phase != "prefill":
            graph.add_placeholder("context_lens", "input", lens)
        if bucket.phase != "decode":
            graph.add_placeholder("query_lens", "input", lens)
        if bucket.phase != "prefill":
            for window in graph.family.pools:
                graph.add_placeholder(pool_input("block_table", window), "input", table)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        index = graph.family.layer_index(candidate.meta["layer"])
        if index is None:
            where = candidate.meta["layer"]
            raise NearMiss(candidate, f"was traced in {where!r}, expected a decoder layer's module")
        described = graph.family.layers[index].attention
        heads, kv_heads = graph.shard.heads(described), graph.shard.kv_heads(described)
        attention = replace(described, heads=heads, kv_heads=kv_heads)
        batch, tokens = graph.bucket.batch, graph.bucket.chunk
        likes = (Like((batch, tokens, n, attention.head_dim), graph.dtype) for n in (heads, kv_heads, kv_heads))
        pattern = trace_pattern(_attended, graph.config, graph.dtype, (*likes, attention))
        if not pattern.calls(candidate.target):
            raise NearMiss(candidate, f"its layer is described with {attention}, which is computed otherwise")
        found = match(pattern, candidate)
        layer = graph.family.cache_layer(index)
        inputs = {node.name: node for kind in ("cache", "input") for node in graph.placeholders(kind)}
        options = {"window": attention.window, "softcap": attention.softcap}
        result = found.nodes[pattern.outputs[0]]
        paged = graph.insert(
            ops.paged_attention,
            *(found.nodes[node] for node in pattern.placeholders("input")),
            inputs[f"key_cache_{layer}"],
            inputs[f"value_cache_{layer}"],
            inputs[pool_input("slot_mapping", attention.window)],
            inputs.get("query_lens"),
            inputs.get("context_lens"),
            inputs.get(pool_input("block_table", attention.window)),
            attention.softmax_scale,
            at=result,
            **{name: value for name, value in options.items() if value is not None},
        )
        replace_match(graph, pattern, found, paged)


def _attended(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """What the definition computes of q, k and v, all [batch, tokens, heads, head_dim]."""
    return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attention).transpose(1, 2)
