"""Rotary embedding is recognized by its halves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.graphs import BFLOAT16, CASES, LAYERS, Case, find, rewrite

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.rotary import Rotary

aten = torch.ops.aten
ROTATIONS = 2 * LAYERS


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(Rotary(), case, bucket)
    parts = ("aten.neg", "aten.slice.Tensor", "aten.cat")
    assert [done.before[op] for op in parts] == [ROTATIONS, 2 * ROTATIONS, ROTATIONS + 1]
    assert [done.after[op] for op in parts] == [0, 0, 1]
    assert done.after["gemma.rotary"] == done.matches == ROTATIONS
    assert done.error == 0.0


def test_cosine_and_sine_keep_their_places() -> None:
    graph = rewrite(Rotary(), BFLOAT16).graph
    for node in graph.calls(ops.rotary):
        assert [table.args[0].target for table in node.args[1:]] == [aten.cos.default, aten.sin.default]


def swap_halves(graph: ModelGraph) -> None:
    rotated = find(graph, aten.cat.default, "layers.1.self_attn")
    rotated.args = (list(reversed(rotated.args[0])), -1)


def negate_the_first_half(graph: ModelGraph) -> None:
    first, second = (find(graph, aten.slice.Tensor, "layers.1.self_attn", index) for index in range(2))
    first.args, second.args = second.args, first.args


def cut_unevenly(graph: ModelGraph) -> None:
    find(graph, aten.slice.Tensor, "layers.1.self_attn", 1).args = (
        find(graph, aten.reshape.default, "1.self_attn"),
        -1,
        6,
        14,
    )


def scale_another_tensor_by_cosine(graph: ModelGraph) -> None:
    other = find(graph, aten.reshape.default, "layers.0.self_attn")
    find(graph, aten.mul.Tensor, "layers.1.self_attn").update_arg(0, other)


def take_the_first_half_of_another_tensor(graph: ModelGraph) -> None:
    other = find(graph, aten.reshape.default, "layers.0.self_attn")
    find(graph, aten.slice.Tensor, "layers.1.self_attn").update_arg(0, other)


def scale_by_a_number(graph: ModelGraph) -> None:
    by_cos = find(graph, aten.mul.Tensor, "layers.1.self_attn")
    by_cos.update_arg(1, 0.5)


BREAKS: dict[str, tuple[Callable[[ModelGraph], None], str]] = {
    "swapped_halves": (swap_halves, r"argument 0 \(tensors\) is slice_\d .*, expected a call of aten\.neg"),
    "other_sign": (negate_the_first_half, r"argument 2 \(start\) is 0, expected 8"),
    "uneven": (cut_unevenly, r"argument 2 \(start\) is 6, expected 8"),
    "two_tensors": (take_the_first_half_of_another_tensor, r"argument 0 \(self\) is reshape .*, expected reshape_4 "),
    "cosine": (scale_another_tensor_by_cosine, r"argument 0 \(self\) is reshape_4 .*, expected reshape "),
    "constant": (scale_by_a_number, r"argument 1 \(other\) is 0\.5, expected a tensor"),
}


@pytest.mark.parametrize(("change", "reason"), BREAKS.values(), ids=BREAKS)
def test_a_broken_pattern_is_an_error_that_names_the_near_miss(
    change: Callable[[ModelGraph], None], reason: str
) -> None:
    graph = BFLOAT16.before(Rotary)
    change(graph)
    where = r"\w+ in model\.layers\.1\.self_attn: "
    with pytest.raises(
        PassError, match=rf"rotary matched {ROTATIONS - 1} times, expected {ROTATIONS} .*{where}{reason}"
    ):
        run_passes(graph, [Rotary()])
