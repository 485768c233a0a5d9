"""Behind the last attention only each row's last token is computed."""

from __future__ import annotations

import pytest
import torch
from support.graphs import BUCKETS, CASES, FLOAT32, LAYERS, Case, find, rewrite

from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.last_token import LastToken

aten = torch.ops.aten


@pytest.mark.parametrize("bucket", ["prefill", "extend", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(LastToken(), case, bucket)
    gather = "aten.select.int" if bucket == "decode" else "gemma.last_token"
    assert (done.before[gather], done.after[gather]) == (0, 2)  # the residual stream and what attention gives
    rest = {op: n for op, n in done.after.items() if op != gather}
    assert rest == dict(done.before)
    assert done.matches == 1
    assert done.error <= (1e-5 if case.dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("bucket", ["prefill", "extend"])
def test_head_and_last_mlp_see_one_token_per_row(bucket: str) -> None:
    graph = rewrite(LastToken(), FLOAT32, bucket).graph
    batch, chunk = BUCKETS[bucket].batch, BUCKETS[bucket].chunk
    shapes = {node.meta["layer"]: tuple(node.meta["val"].shape) for node in graph.calls(aten.linear.default)}
    assert shapes["lm_head"] == (batch, 256)
    last = f"model.layers.{LAYERS - 1}"
    assert shapes[f"{last}.self_attn.o_proj"] == shapes[f"{last}.mlp.down_proj"] == (batch, 48)
    assert shapes[f"{last}.mlp.gate_up_proj"] == (batch, 192)
    assert shapes[f"{last}.self_attn.qkv_proj"] == (batch, chunk, 128)
    assert shapes["model.layers.0.mlp.down_proj"] == (batch, chunk, 48)


@pytest.mark.parametrize("bucket", ["score", "distribution"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scoring_takes_the_scored_tokens(case: Case, bucket: str) -> None:
    done = rewrite(LastToken(), case, bucket)
    assert done.after - done.before == {"gemma.take_tokens": 2}
    assert done.error <= (1e-5 if case.dtype == torch.float32 else 3e-2)
    shapes = [tuple(node.meta["val"].shape) for node in done.graph.calls(aten.linear.default)]
    assert shapes[-1] == (2, 3, case.config.vocab_size)
    assert [node.name for node in done.graph.placeholders("input")][-1] == "score_positions"


def test_a_graph_that_does_not_end_in_the_head_is_a_near_miss() -> None:
    graph = FLOAT32.before(LastToken)
    end = graph.graph.output_node()
    graph.set_outputs(graph.insert(aten.mul.Tensor, graph.outputs[0], 2.0, at=end))
    with pytest.raises(PassError, match=r"last_token matched 0 times, expected 1 .*does not end in the head's linear"):
        run_passes(graph, [LastToken()])


def test_two_outputs_are_refused() -> None:
    graph = FLOAT32.before(LastToken)
    hidden = find(graph, aten.linear.default, "layers.1.mlp.down_proj")
    graph.set_outputs(graph.outputs[0], hidden)
    with pytest.raises(PassError, match="last_token matched 2 times, expected 1"):
        run_passes(graph, [LastToken()])


def test_an_op_that_mixes_tokens_is_not_crossed() -> None:
    """What stands before it is computed for all tokens."""
    graph = FLOAT32.before(LastToken)
    norm = find(graph, torch.ops.gemma.rms_norm.default, "model.norm")
    source = norm.args[0]
    mixed = graph.insert(aten.cos.default, source, at=norm)
    norm.update_arg(0, mixed)
    run_passes(graph, [LastToken()])
    (gathered,) = graph.calls(torch.ops.gemma.last_token.default)
    assert gathered.args[0] is mixed
