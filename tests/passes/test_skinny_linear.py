"""16-bit linear layers of few rows go to the kernel of graph_model.native, others to products in float32."""

from __future__ import annotations

import pytest
import torch
from support.graphs import CASES, LAYERS, Case, count

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.cpu.skinny_linear import SkinnyLinear
from graph_gemma.passes.cpu.tiled_linear import TiledLinear
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.select_token import SelectToken

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

    run_passes(graph, [SkinnyLinear(), TiledLinear()], observe=checker)

    counts = count(graph)
    assert counts["aten.linear"] == 0
    # The last layer is cut to each row's last token before its o_proj: those are few rows in any bucket.
    tiled = 0 if rows <= 16 else counts["gemma.tiled_linear"]
    assert counts["gemma.skinny_linear"] + tiled == linears
    assert rows <= 16 or tiled > 0
    assert all(comparison.error <= 3e-2 for comparison in checker.comparisons)
    assert graph.weight_plan == plan  # no copies


def test_layers_of_many_rows_are_left_to_the_next_pass() -> None:
    graph = next(iter(SIXTEEN_BIT.values())).before(
        SelectToken, Bucket("extend", batch=2, chunk=16, max_blocks_per_seq=2)
    )
    run_passes(graph, [SkinnyLinear()])
    left = graph.calls(torch.ops.aten.linear.default)
    assert left
    assert all(node.meta["val"].shape[:-1].numel() > 16 for node in left)
