"""Faults planted into graphs whose kernels were selected, each with the check that must notice it.

attributes: the model's attributes are followed to the final graph. copies: counts of the lowered graph's nodes.
interpreter: the GE interpreter refuses. numbers: results differ from the canonical graph's by more than rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from graph_model.graph import ModelGraph

Mutation = Callable[[ModelGraph], None]
A2, DUO = "atlas_800i_a2", "atlas_300i_duo"
aten = torch.ops.aten


def calls(graph: ModelGraph, op: str) -> list[fx.Node]:
    """The calls of an op by its name, npu::npu_geglu or the like."""
    found = [n for n in graph.calls() if isinstance(n.target, torch._ops.OpOverload) and n.target.name() == op]
    assert found, op
    return found


def change_keyword(op: str, name: str, change: Callable[[object], object]) -> Mutation:
    """Change one keyword argument of the first call."""

    def mutate(graph: ModelGraph) -> None:
        node = calls(graph, op)[0]
        node.kwargs = {**node.kwargs, name: change(node.kwargs[name])}

    return mutate


def drop_keywords(op: str, *names: str) -> Mutation:
    def mutate(graph: ModelGraph) -> None:
        node = calls(graph, op)[0]
        node.kwargs = {key: value for key, value in node.kwargs.items() if key not in names}

    return mutate


def swap_arguments(op: str, first: int, second: int) -> Mutation:
    """Swap two positional arguments of the first call."""

    def mutate(graph: ModelGraph) -> None:
        node = calls(graph, op)[0]
        args = list(node.args)
        args[first], args[second] = args[second], args[first]
        node.args = tuple(args)

    return mutate


def set_argument(op: str, index: int, value: object) -> Mutation:
    def mutate(graph: ModelGraph) -> None:
        node = calls(graph, op)[0]
        node.args = (*node.args[:index], value, *node.args[index + 1 :])

    return mutate


def rows_swapped(name: str) -> Mutation:
    """Read an input's first two rows in each other's place."""

    def mutate(graph: ModelGraph) -> None:
        source = next(n for n in graph.placeholders("input") if n.name == name)
        users = list(source.users)
        at = graph.calls()[0]
        rows = [graph.insert(aten.slice.Tensor, source, 0, row, row + 1, at=at) for row in (1, 0, 2)]
        swapped = graph.insert(aten.cat.default, rows, 0, at=at)
        for user in users:
            user.replace_input_with(source, swapped)

    return mutate


def shifted(name: str, by: int) -> Mutation:
    """Add a number to an input of lengths, which stay at least 1."""

    def mutate(graph: ModelGraph) -> None:
        source = next(n for n in graph.placeholders("input") if n.name == name)
        users = list(source.users)
        at = graph.calls()[0]
        moved = graph.insert(aten.clamp.default, graph.insert(aten.add.Tensor, source, by, at=at), 1, at=at)
        for user in users:
            user.replace_input_with(source, moved)

    return mutate


def zero_slots(graph: ModelGraph) -> None:
    """All tokens of a step go to one slot."""
    source = next(n for n in graph.placeholders("input") if n.name == "slot_mapping")
    users = list(source.users)
    zeros = graph.insert(aten.mul.Tensor, source, 0, at=graph.calls()[0])
    for user in users:
        user.replace_input_with(source, zeros)


def lose_norm_offset(graph: ModelGraph) -> None:
    """The norm multiplies by w, not by 1 + w."""
    node = calls(graph, "ascend::gemma_rms_norm")[0]
    pair = graph.insert(torch.ops.npu.npu_rms_norm.default, *node.args, at=node)
    node.replace_all_uses_with(graph.insert(operator.getitem, pair, 0, at=node))


def lose_embedding_scale(graph: ModelGraph) -> None:
    embedding = graph.calls(aten.embedding.default)[0]
    scaled = next(iter(embedding.users))
    scaled.replace_all_uses_with(embedding)


def transpose_a_weight(graph: ModelGraph) -> None:
    """A linear layer transposes its weight at run time."""
    node = calls(graph, "ascend::linear")[0]
    x, weight = node.args[:2]
    turned = graph.insert(aten.permute.default, weight, [1, 0], at=node)
    node.replace_all_uses_with(graph.insert(aten.mm.default, x, turned, at=node))


def copy_a_cache(graph: ModelGraph) -> None:
    """Keys are written into another tensor, which is then copied into the cache."""
    cache = graph.placeholders("cache")[0]
    users = list(cache.users)
    doubled = graph.insert(aten.mul.Tensor, cache, 1.0, at=graph.calls()[0])
    for user in users:
        user.replace_input_with(cache, doubled)
    graph.insert(aten.copy_.default, cache, doubled, at=graph.graph.output_node())


def halved(value: object) -> object:
    assert isinstance(value, float)
    return value / 2


FUSED, SCATTER = "air::npu_fused_infer_attention_score", "npu::npu_scatter_pa_kv_cache"
INCREMENTAL, PROMPT = "ascend::incre_flash_attention", "npu::npu_prompt_flash_attention"

# name: (phase, the check that notices it, the fault)
MUTATIONS: dict[str, dict[str, tuple[str, str, Mutation]]] = {
    A2: {
        "none": ("extend", "", lambda graph: None),
        "wrong softmax scale": ("decode", "attributes", change_keyword(FUSED, "scale", halved)),
        "lost 1 + w": ("decode", "attributes", lose_norm_offset),
        "wrong eps": ("decode", "attributes", set_argument("ascend::gemma_rms_norm", 2, 1e-3)),
        "lost embedding scale": ("decode", "attributes", lose_embedding_scale),
        "swapped block table": ("decode", "numbers", rows_swapped("block_table")),
        "swapped positions": ("decode", "numbers", rows_swapped("positions")),
        "context one token short": ("extend", "numbers", shifted("context_lens", -1)),
        "query lengths lost": ("extend", "interpreter", drop_keywords(FUSED, "actual_seq_lengths")),
        "mask lost": ("prefill", "numbers", drop_keywords(FUSED, "atten_mask", "sparse_mode")),
        "keys for values": ("decode", "numbers", swap_arguments(FUSED, 1, 2)),
        "caches swapped": ("decode", "numbers", swap_arguments(SCATTER, 2, 3)),
        "one slot for all": ("decode", "interpreter", zero_slots),
        "wrong block size": ("decode", "interpreter", change_keyword(FUSED, "block_size", lambda size: 32)),
        "up activated": ("decode", "numbers", set_argument("npu::npu_geglu", 3, False)),
        "sine for cosine": ("decode", "numbers", swap_arguments("npu::npu_rotary_mul", 1, 2)),
        "transposed weight": ("decode", "copies", transpose_a_weight),
        "copied cache": ("decode", "copies", copy_a_cache),
    },
    DUO: {
        "none": ("decode", "", lambda graph: None),
        "wrong softmax scale": ("decode", "attributes", change_keyword(INCREMENTAL, "scale", halved)),
        "wrong scale in prefill": ("prefill", "attributes", change_keyword(PROMPT, "scale_value", halved)),
        "swapped block table": ("decode", "numbers", rows_swapped("block_table")),
        "context one token short": ("extend", "numbers", shifted("context_lens", -1)),
        "wrong head count": ("decode", "interpreter", change_keyword(INCREMENTAL, "num_heads", lambda heads: 2)),
        "one slot for all": ("decode", "interpreter", zero_slots),
        "transposed weight": ("decode", "copies", transpose_a_weight),
        "copied cache": ("decode", "copies", copy_a_cache),
    },
}
