"""Attention over whole sequences becomes attention over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.framework.contract import Pass, PassError, Tier, argument, require, sole_user

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
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (aten.scaled_dot_product_attention.default, aten.transpose.int)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.scaled_dot_product_attention.default)

    def expected_matches(self, graph: ModelGraph) -> int:
        return graph.config.num_hidden_layers

    def prepare(self, graph: ModelGraph) -> None:
        bucket, config, cache_config = graph.bucket, graph.config, graph.cache_config
        with graph.fake_mode:
            shape = cache_config.shape(graph.shard.kv_heads(config), config.head_dim)
            cache = torch.empty(shape, dtype=graph.dtype)
            slots = torch.empty(bucket.batch, bucket.chunk, dtype=torch.int64)
            lens = torch.empty(bucket.batch, dtype=torch.int64)
            table = torch.empty(bucket.batch, bucket.max_blocks_per_seq, dtype=torch.int64)
        for layer in range(config.num_hidden_layers):
            graph.add_placeholder(f"key_cache_{layer}", "cache", cache)
            graph.add_placeholder(f"value_cache_{layer}", "cache", cache)
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
        layer = _layer_index(candidate)
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


def _layer_index(node: fx.Node) -> int:
    """i of model.layers.i, where the node was traced."""
    parts = node.meta["layer"].split(".")
    if parts[:2] != ["model", "layers"]:
        raise PassError(f"{node.name} was traced in {node.meta['layer']!r}, expected a module of model.layers")
    return int(parts[2])
