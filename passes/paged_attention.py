"""Attention over whole sequences becomes attention over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.framework.contract import Matches, NearMiss, Pass, Tier, argument, require, sole_user
from passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class PagedAttention(Pass):
    """Causal attention gets a cache: the one pass that changes what a step means.

    Before it, a graph reads whole sequences. After it, a graph reads the next tokens of sequences whose earlier keys
    and values lie in blocks.

    Original::

        y = transpose(scaled_dot_product_attention(transpose(q), transpose(k), transpose(v), causal, scale))

    After::

        y = gemma.paged_attention(q, k, v, key_cache_i, value_cache_i, slot_mapping, query_lens, context_lens,
                                  block_table, scale)
    """

    name: ClassVar[str] = "paged_attention"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.attentions)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (aten.scaled_dot_product_attention.default, aten.transpose.int)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.scaled_dot_product_attention.default)

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

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        attend = _bound_arguments(candidate)
        require(attend.pop("is_causal") is True, candidate, "is not causal")
        require(attend.pop("attn_mask") is None, candidate, "has a mask besides causality")
        require(attend.pop("dropout_p") == 0.0, candidate, "has dropout")
        scale = attend.pop("scale")
        require(isinstance(scale, float), candidate, f"its scale is {scale!r}, expected a number")
        attend.pop("enable_gqa")
        sources = [argument(candidate, index, aten.transpose.int) for index in range(3)]
        output = sole_user(candidate, aten.transpose.int)
        for node in (*sources, output):
            require(node.args[1:] == (1, 2), node, f"swaps dimensions {node.args[1:]}, expected (1, 2)")
        require(attend.keys() == {"query", "key", "value"}, candidate, f"has unknown arguments {sorted(attend)}")
        index = graph.family.layer_index(candidate.meta["layer"])
        if index is None:
            raise NearMiss(candidate, f"was traced in {candidate.meta['layer']!r}, expected a decoder layer's module")
        attention = graph.family.layers[index].attention
        require(attention.window is None, candidate, f"its layer has a window of {attention.window}; no op takes one")
        require(
            attention.softcap is None, candidate, f"its layer has a soft-cap of {attention.softcap}; no op takes one"
        )
        layer = graph.family.cache_layer(index)
        inputs = {node.name: node for kind in ("cache", "input") for node in graph.placeholders(kind)}
        result = graph.insert(
            ops.paged_attention,
            *(source.args[0] for source in sources),
            inputs[f"key_cache_{layer}"],
            inputs[f"value_cache_{layer}"],
            inputs["slot_mapping"],
            inputs.get("query_lens"),
            inputs.get("context_lens"),
            inputs.get("block_table"),
            scale,
            at=output,
        )
        output.replace_all_uses_with(result)
        # Dead-code elimination keeps attention, because its dropout could draw random numbers.
        graph.graph.erase_node(output)
        graph.graph.erase_node(candidate)


def _bound_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, with the schema's defaults."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    bound = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    for schema_argument, value in zip(target._schema.arguments, node.args, strict=False):
        bound[schema_argument.name] = value
    return {**bound, **node.kwargs}
