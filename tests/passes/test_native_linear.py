"""16-bit linear layers go to the kernels of graph_model.native, by the number of rows."""

from __future__ import annotations

import pytest
import torch
from support.graphs import CASES, LAYERS, Case, count

from passes.check import PassChecker
from passes.manager import run_passes
from passes.native_linear import NativeLinear
from passes.select_token import SelectToken

SIXTEEN_BIT = {name: case for name, case in CASES.items() if case.dtype != torch.float32}


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", SIXTEEN_BIT.values(), ids=SIXTEEN_BIT)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    graph = case.before(SelectToken, bucket)
    rows = graph.bucket.batch * graph.bucket.chunk
    linears = 4 * LAYERS + 1
    assert count(graph)["aten.linear"] == linears
    plan = graph.weight_plan
    checker = PassChecker(case.read)

    run_passes(graph, [NativeLinear()], observe=checker)

    counts = count(graph)
    assert counts["aten.linear"] == 0
    # The last layer is cut to each row's last token before its o_proj: those are few rows in any bucket.
    tiled = 0 if rows <= 16 else counts["gemma.tiled_linear"]
    assert counts["gemma.few_rows_linear"] + tiled == linears
    assert rows <= 16 or tiled > 0
    assert checker.comparisons[0].error <= 3e-2
    assert graph.weight_plan == plan  # no copies
