"""Projections of one input become one linear."""

from __future__ import annotations

import pytest
import torch
from support.graphs import BFLOAT16, CASES, FLOAT32, LAYERS, Case, find, replace_call, rewrite
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import Concat
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.merge_projections import MergeGateUp, MergeQKV

aten = torch.ops.aten


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_qkv_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(MergeQKV(), case, bucket)
    assert (done.before["aten.linear"], done.after["aten.linear"]) == (7 * LAYERS + 1, 5 * LAYERS + 1)
    assert done.after["aten.split_with_sizes"] == done.matches == LAYERS
    assert done.error <= (1e-5 if case.dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gate_up_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(MergeGateUp(), case, bucket)
    assert (done.before["aten.linear"], done.after["aten.linear"]) == (5 * LAYERS + 1, 4 * LAYERS + 1)
    assert done.after["aten.split_with_sizes"] - done.before["aten.split_with_sizes"] == done.matches == LAYERS
    assert done.error <= (1e-5 if case.dtype == torch.float32 else 3e-2)


def test_weights_and_biases_are_joined_in_order() -> None:
    graph = rewrite(MergeQKV(), BFLOAT16).graph
    merged = [e for e in graph.weight_plan.values() if isinstance(e, Concat)]
    layer = "model.layers.{}.self_attn.{}_proj.{}"
    assert [[part.name for part in e.parts] for e in merged] == [
        [layer.format(index, name, kind) for name in "qkv"] for index in range(LAYERS) for kind in ("weight", "bias")
    ]
    names = {str(e) for e in graph.weight_plan.values()}
    assert "model.layers.0.self_attn.q_proj.weight" not in names


def projection(graph: ModelGraph, name: str) -> fx.Node:
    return find(graph, aten.linear.default, f"layers.1.{name}")


def test_another_input_of_one_projection_is_a_near_miss() -> None:
    graph = FLOAT32.before(MergeQKV)
    q = projection(graph, "self_attn.q_proj")
    q.update_arg(0, graph.insert(aten.mul.Tensor, q.args[0], 0.5, at=q))
    reason = r"linear_\d in model\.layers\.1\.self_attn\.q_proj: its input feeds model\.\S+\.q_proj, expected"
    with pytest.raises(PassError, match=rf"merge_qkv matched 1 times, expected 2 .*{reason}"):
        run_passes(graph, [MergeQKV()])


def test_a_fourth_projection_is_a_near_miss() -> None:
    graph = FLOAT32.before(MergeGateUp)
    up = projection(graph, "mlp.up_proj")
    extra = graph.insert(aten.linear.default, *up.args, at=up)
    replace_call(graph, up, aten.add.Tensor, extra, graph.insert(aten.linear.default, *up.args, at=up))
    reason = r"mlp\.gate_proj: its input feeds \S+\.gate_proj, \S+\.up_proj, \S+\.up_proj, expected"
    with pytest.raises(PassError, match=rf"merge_gate_up matched 1 times, expected 2 .*{reason}"):
        run_passes(graph, [MergeGateUp()])


def test_a_bias_on_some_projections_is_a_near_miss() -> None:
    graph = BFLOAT16.before(MergeQKV)
    k = projection(graph, "self_attn.k_proj")
    k.args = k.args[:2]
    with pytest.raises(PassError, match="q_proj: some of the projections have a bias and some have none"):
        run_passes(graph, [MergeQKV()])


def test_a_computed_weight_is_a_near_miss() -> None:
    graph = FLOAT32.before(MergeQKV)
    v = projection(graph, "self_attn.v_proj")
    v.update_arg(1, graph.insert(aten.mul.Tensor, v.args[1], 0.5, at=v))
    with pytest.raises(PassError, match=r"v_proj: argument 1 is .*, expected a weight"):
        run_passes(graph, [MergeQKV()])
