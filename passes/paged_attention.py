"""Attention over whole sequences becomes attention over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.framework.contract import Matches, NearMiss, Tier, require
from passes.framework.matches import per_model
from passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class PagedAttention(Recognize):
    """Attention becomes paged attention; adds caches, block table and lengths.

    It is the one pass that changes what a step means. Before it, a graph reads whole sequences. After it, a graph reads
    the next tokens of sequences whose earlier keys and values lie in blocks::

        gemma.paged_attention(q, k, v, key_cache_i, value_cache_i, slot_mapping, query_lens, context_lens, block_table,
                              scale)
    """

    name: ClassVar[str] = "paged_attention"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.attentions)
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (aten.scaled_dot_product_attention.default, aten.transpose.int)

    @staticmethod
    def original(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return attended.transpose(1, 2)

    def prepare(self, graph: ModelGraph) -> None:
        bucket = graph.bucket
        with graph.fake_mode:
            slots = torch.empty(bucket.batch, bucket.chunk, dtype=torch.int64)
            lens = torch.empty(bucket.batch, dtype=torch.int64)
            table = torch.empty(bucket.batch, bucket.max_blocks_per_seq, dtype=torch.int64)
        for index, layer in enumerate(graph.family.layers):
            if graph.family.cache_layer(index) == index:
                shape = graph.cache_config.shape(graph.shard.kv_heads(layer.attention), layer.attention.head_dim)
                with graph.fake_mode:
                    cache = torch.empty(shape, dtype=graph.dtype)
                graph.add_placeholder(f"key_cache_{index}", "cache", cache)
                graph.add_placeholder(f"value_cache_{index}", "cache", cache)
        graph.add_placeholder("slot_mapping", "input", slots)
        if bucket.phase != "prefill":
            graph.add_placeholder("context_lens", "input", lens)
        if bucket.phase != "decode":
            graph.add_placeholder("query_lens", "input", lens)
        if bucket.phase != "prefill":
            graph.add_placeholder("block_table", "input", table)

    def replacement(self, graph: ModelGraph, at: fx.Node, *arguments: Any) -> fx.Node:
        *tensors, scale = arguments
        index = graph.family.layer_index(at.meta["layer"])
        if index is None:
            raise NearMiss(at, f"was traced in {at.meta['layer']!r}, expected a decoder layer's module")
        attention = graph.family.layers[index].attention
        require(attention.window is None, at, f"its layer has a window of {attention.window}; no op takes one")
        require(attention.softcap is None, at, f"its layer has a soft-cap of {attention.softcap}; no op takes one")
        layer = graph.family.cache_layer(index)
        inputs = {node.name: node for kind in ("cache", "input") for node in graph.placeholders(kind)}
        return graph.insert(
            ops.paged_attention,
            *tensors,
            inputs[f"key_cache_{layer}"],
            inputs[f"value_cache_{layer}"],
            inputs["slot_mapping"],
            inputs.get("query_lens"),
            inputs.get("context_lens"),
            inputs.get("block_table"),
            scale,
            at=at,
        )
