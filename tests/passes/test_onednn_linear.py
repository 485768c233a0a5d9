"""Linear layers go to oneDNN on CPUs that have its kernels."""

from __future__ import annotations

import pytest
import torch
from support.graphs import CASES, LAYERS, Case, count, rewrite

from graph_gemma.graph_model import ops
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.cpu.onednn_linear import OneDNNLinear
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.select_token import SelectToken


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    if not ops.onednn_supports(case.dtype):
        pytest.skip(f"this CPU has no oneDNN kernels for {case.dtype}")
    graph = case.before(SelectToken, bucket)
    linears = 4 * LAYERS + 1
    assert count(graph)["aten.linear"] == linears
    assert OneDNNLinear().apply(graph.copy()).matches == linears
    plan = graph.weight_plan
    checker = PassChecker(case.read)

    run_passes(graph, [OneDNNLinear()], observe=checker)

    assert (count(graph)["aten.linear"], count(graph)["gemma.onednn_linear"]) == (0, linears)
    assert checker.comparisons[0].error <= (1e-5 if case.dtype == torch.float32 else 3e-2)
    assert graph.weight_plan == plan  # no packed copies


def test_tokens_are_chosen_behind_it() -> None:
    graph = rewrite(SelectToken(), CASES["untied_head-float32"], "decode").graph
    run_passes(graph, [OneDNNLinear()])
    assert graph.outputs[0].target == ops.greedy_token
    assert graph.outputs[0].args[0].target == ops.onednn_linear
