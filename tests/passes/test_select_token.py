"""Logits become token ids in the graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.graphs import BUCKETS, CASES, FLOAT32, Case, rewrite

from graph_gemma.graph_model import ops
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.select_token import SelectToken


@pytest.mark.parametrize("bucket", ["prefill", "extend", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_greedy_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(SelectToken(), case, bucket)
    assert done.before["gemma.greedy_token"] == 0
    assert done.after - done.before == {"gemma.greedy_token": 1}
    assert done.matches == 1
    assert done.error == 0.0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sampling_ops_before_ops_after_matches_numerics(case: Case) -> None:
    done = rewrite(SelectToken(), case, "sample")
    assert done.after - done.before == {"gemma.sample_token": 1, "gemma.token_logprobs": 1, "getitem": 3}
    assert done.matches == 1
    assert done.error == 0.0


def test_sampling_adds_its_inputs_at_the_end() -> None:
    graph = rewrite(SelectToken(), FLOAT32, "sample").graph
    inputs = [(node.name, node.meta["val"].dtype) for node in graph.placeholders("input")]
    assert inputs[-4:] == [
        ("temperature", torch.float32),
        ("top_k", torch.int64),
        ("top_p", torch.float32),
        ("uniform", torch.float32),
    ]


@pytest.mark.parametrize("top", [-1, 0, 3])
def test_outputs_are_ids_and_what_logprobs_asks_for(top: int) -> None:
    graph = rewrite(SelectToken(), FLOAT32, replace(BUCKETS["decode"], logprobs=top)).graph
    values = [node.meta["val"] for node in graph.outputs]
    found = [(value.dtype, tuple(value.shape)) for value in values]
    expected = [(torch.int64, (2,)), (torch.float32, (2,)), (torch.int64, (2, top)), (torch.float32, (2, top))]
    assert found == (expected if top >= 0 else expected[:1])


@pytest.mark.parametrize(
    ("bucket", "op", "size"), [("score", "target_logprobs", ()), ("distribution", "log_probabilities", (256,))]
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scoring_returns_the_likeliest_ids_and_log_probabilities(
    case: Case, bucket: str, op: str, size: tuple[int, ...]
) -> None:
    done = rewrite(SelectToken(), case, bucket)
    assert done.after - done.before == {"gemma.greedy_token": 1, f"gemma.{op}": 1}
    assert done.matches == 1
    assert done.error == 0.0
    values = [node.meta["val"] for node in done.graph.outputs]
    assert [(v.dtype, tuple(v.shape)) for v in values] == [(torch.int64, (2, 3)), (torch.float32, (2, 3, *size))]


def test_greedy_does_not_sort() -> None:
    graph = rewrite(SelectToken(), FLOAT32, "decode").graph
    assert not graph.calls(ops.sample_token)
    assert "uniform" not in [node.name for node in graph.placeholders("input")]


def test_two_outputs_are_refused() -> None:
    graph = FLOAT32.before(SelectToken)
    graph.set_outputs(*graph.outputs, *graph.outputs)
    with pytest.raises(PassError, match="select_token matched 2 times, expected 1"):
        run_passes(graph, [SelectToken()])
