"""Select the attention kernels of the Atlas 800I A2: paged cache writes and fused infer attention."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.ascend.ops.attention_choice import AttentionChoice, choose_attention
from graph_model.chips.chip import Chip
from graph_model.graph import ModelGraph
from graph_model.weights import CausalMask
from passes.framework.contract import Matches, Pass, Tier, operand, require
from passes.framework.matches import per_model

aten = torch.ops.aten

# The form that sparse_mode 3 takes the causal mask in, whatever the lengths.
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
        for name, value in candidate.kwargs.items():
            require(value is None, candidate, f"its {name} of {value} is not lowered to a kernel of this chip")
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

    Where paging is legal for several query tokens, prefill is paged as well, its block table made from the slots. The
    table's cast to int32 and the causal mask are shared by all layers.
    """

    name: ClassVar[str] = "ascend_fused_attention"
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_scatter_pa_kv_cache",
        "air.npu_fused_infer_attention_score",
        "aten.floor_divide",
        "aten.index_select",
    )

    def idle(self, graph: ModelGraph) -> str:
        return "the cache is int8" if graph.quantization is not None and graph.quantization.kv8 else ""

    def write_cache(self, attention: Attention) -> None:
        slots = attention.shared("slots", lambda at: attention.call(aten.reshape.default, attention.slots, [-1], at=at))
        tokens = [-1, attention.kv_heads, attention.head_dim]
        key, value = (attention.call(aten.reshape.default, new, tokens) for new in (attention.key, attention.value))
        caches = (attention.key_cache, attention.value_cache)
        attention.call(torch.ops.npu.npu_scatter_pa_kv_cache.default, key, value, *caches, slots, cache_mode="Norm")

    def attend(self, attention: Attention, choice: AttentionChoice) -> fx.Node:
        if attention.block_table is None and not choice.paged:
            key, value = attention.key, attention.value
        else:
            view = attention.blocks if choice.paged else attention.gathered
            key, value = (view(cache) for cache in (attention.key_cache, attention.value_cache))
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
    a = attention
    options["actual_seq_lengths_kv"] = a.query_lens if a.block_table is None else a.context_lens
    if paged:
        options["block_table"] = a.int32_table()
        options["block_size"] = a.block_size
    if a.graph.bucket.phase != "decode":
        options["atten_mask"] = causal_mask(a.graph)
        options["actual_seq_lengths"] = a.query_lens
        options["sparse_mode"] = 3
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
    )


def causal_mask(graph: ModelGraph) -> fx.Node:
    """The causal mask's weight, one for the whole graph."""
    return graph.add_weight("causal_mask", CausalMask(CAUSAL_MASK_SIZE))


class Attention:
    """The operands of one canonical attention, and shorthands for what replaces it.

    scales: of the keys' and of the values' cache, where they are int8.
    """

    def __init__(self, graph: ModelGraph, node: fx.Node) -> None:
        self.graph = graph
        self.node = node
        operands = [operand(node, index) for index in range(len(node.args) - 4)]
        self.query, self.key, self.value, self.key_cache, self.value_cache, *self.scales, self.slots = operands
        self.query_lens, self.context_lens, self.block_table, scale = node.args[-4:]
        assert isinstance(scale, float)
        self.scale = scale
        self.batch, self.tokens, self.heads, self.head_dim = self.query.meta["val"].shape
        self.kv_heads = self.key.meta["val"].shape[2]
        self.num_blocks, self.block_size = graph.cache_config.num_blocks, graph.cache_config.block_size

    def call(self, target: Any, *args: Any, at: fx.Node | None = None, **kwargs: Any) -> fx.Node:
        """Insert a call before the attention, or before `at`."""
        return self.graph.insert(target, *args, at=at or self.node, **kwargs)

    def shared(self, name: str, make: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The value `name`, which all layers share: made in front of the graph's calls when it is first asked for.

        `make` inserts the calls that compute it before the node that it is given.
        """
        calls = self.graph.calls()
        found = [node for node in calls if node.meta.get("shared") == name]
        if found:
            return found[0]
        known = set(calls)
        made = make(next(node for node in calls if "shared" not in node.meta))
        for node in self.graph.calls():
            if node not in known:
                node.meta.update(layer="", shared=name if node is made else f"{name}, in part")
        return made

    def int32_table(self) -> fx.Node:
        """The block table that a paged kernel reads, shared by all layers; in prefill, of the blocks of the slots."""
        return self.shared("table", self._int32_table)

    def _int32_table(self, at: fx.Node) -> fx.Node:
        table = self.block_table
        if table is None:
            # A first chunk begins with a block and fills one after the other.
            firsts = self.call(aten.slice.Tensor, self.slots, 1, 0, self.tokens, self.block_size, at=at)
            table = self.call(aten.floor_divide.default, firsts, self.block_size, at=at)
        return self.call(aten.to.dtype, table, torch.int32, at=at)

    def blocks(self, cache: fx.Node) -> fx.Node:
        """A cache as [blocks, block_size, kv_heads * head_dim]."""
        return self.call(aten.reshape.default, cache, [self.num_blocks, self.block_size, self.kv_heads * self.head_dim])

    def gathered(self, cache: fx.Node) -> fx.Node:
        """The keys or values of each row's blocks, [batch, width * block_size, kv_heads, head_dim]."""
        table = self.block_table
        assert isinstance(table, fx.Node)
        flat = self.shared("flat table", lambda at: self.call(aten.reshape.default, table, [-1], at=at))
        blocks = self.call(aten.index_select.default, cache, 0, flat)
        return self.call(aten.reshape.default, blocks, [self.batch, -1, self.kv_heads, self.head_dim])
