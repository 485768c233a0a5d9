"""Peak live memory of graphs small enough to follow by hand."""

from __future__ import annotations

import torch
from support.ge_graphs import const, data, graph, node

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, Node, TensorDesc
from graph_gemma.runners.backends.ascend.liveness import profile_memory

KB = (torch.float32, (256,))  # 1024 bytes


def typed(made: Node, *outputs: tuple[torch.dtype, tuple[int, ...]]) -> Node:
    made.outputs = [TensorDesc(f"y{i}", dtype, shape) for i, (dtype, shape) in enumerate(outputs)]
    return made


def unary(name: str, source: str) -> Node:
    return typed(node("Exp", name, {"x": source}), KB)


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    profile = profile_memory(graph(data("x", 0, *KB), unary("a", "x"), unary("b", "a"), unary("c", "b"), output=("c",)))
    assert dict(zip(profile.order, profile.live, strict=True)) == {
        "x": 0, "a": 1024, "b": 2048, "c": 2048, "NetOutput": 1024,
    }  # fmt: skip
    assert (profile.inputs, profile.constants, profile.peak, profile.peak_node) == (1024, 0, 2048, "b")
    assert profile.at_peak == {"a": 1024, "b": 1024}


def diamond(*middle: Node) -> GeGraph:
    add = typed(node("Add", "sum", {"x1": "a", "x2": "c"}), KB)
    return graph(data("x", 0, *KB), unary("a", "x"), *middle, add, output=("sum",))


def test_what_is_read_again_later_stays_live() -> None:
    profile = profile_memory(diamond(unary("b", "a"), unary("c", "b")))
    assert profile.peak == 3 * 1024
    assert profile.at_peak == {"a": 1024, "b": 1024, "c": 1024}


def test_views_share_memory_and_keep_what_they_view_alive() -> None:
    shape = const("shape", torch.tensor([16, 16]))
    view = typed(node("Reshape", "b", {"x": "a", "shape": "shape"}), (torch.float32, (16, 16)))
    profile = profile_memory(graph(data("x", 0, *KB), shape, unary("a", "x"), view, unary("c", "x"),
                                   typed(node("Add", "sum", {"x1": "b", "x2": "c"}), KB), output=("sum",)))  # fmt: skip
    assert profile.peak == 3 * 1024  # a under its view, c, sum
    assert profile.constants == 16
    assert "b" not in profile.at_peak


def test_a_cache_written_by_reference_is_an_input_only() -> None:
    cache = (torch.float32, (1000, 256))
    scatter = node("ScatterNdUpdate", "scatter", {"var": "cache", "indices": "rows", "updates": "x"})
    profile = profile_memory(
        graph(
            data("cache", 0, *cache),
            data("rows", 1, torch.int64, (1, 1)),
            data("x", 2, torch.float32, (1, 256)),
            typed(scatter, cache),
            typed(node("ReduceMax", "max", {"x": "scatter", "axes": "rows"}), KB),
            output=("max",),
        )
    )
    assert profile.inputs == 1000 * 1024 + 8 + 1024
    assert profile.peak == 1024


def test_outputs_live_to_the_end_and_unread_ones_for_one_node() -> None:
    glu = typed(node("GeGluV2", "glu", {"x": "x"}), KB, KB)
    g = graph(data("x", 0, *KB), glu, unary("b", "x"), unary("c", "b"), output=("glu:0", "c"))
    live = dict(zip(*(lambda p: (p.order, p.live))(profile_memory(g)), strict=True))
    assert live == {"x": 0, "glu": 2048, "b": 2048, "c": 3072, "NetOutput": 2048}
