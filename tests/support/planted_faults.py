"""Faults to plant into graphs whose kernels were selected: each changes a graph in place."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from support.torchair_steps import GEMMA2, GEMMA3

Mutation = Callable[[ModelGraph], None]
FUSED = "air::npu_fused_infer_attention_score"
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


def other_pool(name: str) -> Mutation:
    """Layers with a window read the slots or blocks of those without."""

    def mutate(graph: ModelGraph) -> None:
        inputs = {node.name: node for node in graph.placeholders("input")}
        source, other = inputs[f"window_{name}"], inputs[name]
        for user in list(source.users):
            user.replace_input_with(source, other)

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


def cast_a_weight(graph: ModelGraph) -> None:
    """A linear layer rounds its weight at run time, to what it is."""
    node = calls(graph, "ascend::linear")[0]
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    wide = graph.insert(aten.to.dtype, weight, torch.float32, at=node)
    node.replace_input_with(weight, graph.insert(aten.to.dtype, wide, graph.dtype, at=node))


def negate_twice(graph: ModelGraph) -> None:
    """A layer does something that changes nothing."""
    node = calls(graph, "ascend::linear")[0]
    x = node.args[0]
    assert isinstance(x, fx.Node)
    node.replace_input_with(x, graph.insert(aten.neg.default, graph.insert(aten.neg.default, x, at=node), at=node))


def subtract_norm_offset(graph: ModelGraph) -> None:
    """The norm multiplies by w, not by 1 + w: its weight is made smaller by 1."""
    node = calls(graph, "npu::npu_rms_norm")[0]
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    node.replace_input_with(weight, graph.insert(aten.add.Tensor, weight, -1.0, at=node))


def swap_scattered_caches(graph: ModelGraph) -> None:
    """Keys are written where values belong, and the other way round."""
    first, second = calls(graph, "npu::npu_scatter_nd_update_")[:2]
    second.append(first)  # what it writes comes after the first
    first.args, second.args = (second.args[0], *first.args[1:]), (first.args[0], *second.args[1:])


def hide_own_token(graph: ModelGraph) -> None:
    """The causal mask hides a token from itself, but for the first."""
    node = calls(graph, "aten::gt.Tensor")[0]
    keys, visible = node.args
    assert isinstance(visible, fx.Node)
    earlier = graph.insert(aten.clamp.default, graph.insert(aten.sub.Tensor, visible, 1, at=node), 0, at=node)
    node.args = (keys, earlier)


def rotate_the_other_way(graph: ModelGraph) -> None:
    """Rotary embedding that is written out loses its minus sign."""
    node = calls(graph, "aten::neg")[0]
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


def given_as_a_band(graph: ModelGraph) -> None:
    """Decode is told its window by pre_tokens, which the op ignores."""
    for node in calls(graph, FUSED):
        if "atten_mask" in node.kwargs:
            options = {key: value for key, value in node.kwargs.items() if key != "atten_mask"}
            before = GEMMA3.sliding_window - 1
            node.kwargs = {**options, "sparse_mode": 4, "pre_tokens": before, "next_tokens": 0}


def blocks_one_late(graph: ModelGraph) -> None:
    """The blocks of the window begin one later than its oldest key."""
    node = calls(graph, "aten::floor_divide")[0]
    later = graph.insert(aten.sub.Tensor, node, -1, at=next(iter(node.users)))
    node.replace_all_uses_with(later, delete_user_cb=lambda user: user is not later)


def cap_after_the_mask(graph: ModelGraph) -> None:
    """Scores are hidden first, so that the soft-cap brings them back."""
    node = calls(graph, "aten::masked_fill.Scalar")[0]
    cap = calls(graph, "aten::mul.Tensor")
    capped = next(n for n in cap if n.args[1] == GEMMA2.attn_logit_softcapping)
    tanh = capped.args[0]
    assert isinstance(tanh, fx.Node)
    divided = tanh.args[0]
    assert isinstance(divided, fx.Node)
    scores = divided.args[0]
    assert isinstance(scores, fx.Node)
    by_head = list(node.meta["val"].shape)
    hidden = graph.insert(aten.reshape.default, scores, by_head, at=divided)
    hidden = graph.insert(aten.masked_fill.Scalar, hidden, *node.args[1:], at=divided)
    hidden = graph.insert(aten.reshape.default, hidden, list(scores.meta["val"].shape), at=divided)
    divided.replace_input_with(scores, hidden)
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


def lose_softcap(graph: ModelGraph) -> None:
    tanh = calls(graph, "aten::tanh")[0]
    divided = tanh.args[0]
    assert isinstance(divided, fx.Node)
    next(iter(tanh.users)).replace_all_uses_with(divided.args[0])  # type: ignore[arg-type]


def other_layers_base(graph: ModelGraph) -> None:
    """The first layer is rotated by the second one's tables."""
    rotations = calls(graph, "npu::npu_rotary_mul")
    other = next(node for node in rotations if node.args[1] is not rotations[0].args[1])
    tables = [node for argument in other.args[1:] for node in _with_sources(argument)]
    for node in dict.fromkeys(tables):
        if node.op == "call_function" and node > rotations[0]:
            rotations[0].prepend(node)
    rotations[0].args = (rotations[0].args[0], *other.args[1:])


def _with_sources(node: object) -> list[fx.Node]:
    assert isinstance(node, fx.Node)
    return [*(found for source in node.all_input_nodes for found in _with_sources(source)), node]


def norm_after_rotation(graph: ModelGraph) -> None:
    """Queries are rotated before they are normed."""
    rotation = calls(graph, "npu::npu_rotary_mul")[0]
    norm = rotation.args[0]
    assert isinstance(norm, fx.Node)
    rotation.replace_input_with(norm, norm.args[0])  # type: ignore[arg-type]
    users = list(rotation.users)
    late = graph.insert(norm.target, rotation, *norm.args[1:], at=users[0])
    for user in users:
        user.replace_input_with(rotation, late)


def widened(value: object) -> object:
    assert isinstance(value, int)
    return value + 1


def halved(value: object) -> object:
    assert isinstance(value, float)
    return value / 2
