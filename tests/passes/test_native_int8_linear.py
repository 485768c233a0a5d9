"""Quantized linear layers go to the kernels for a CPU, by the number of rows."""

from __future__ import annotations

import pytest
from support.graphs import LAYERS, QUANTIZED_CASES, Case, count

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.cpu.native_int8_linear import NativeInt8Linear
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.select_token import SelectToken

MANY_ROWS = Bucket("extend", batch=2, chunk=16, max_blocks_per_seq=2)


@pytest.mark.parametrize(
    ("bucket", "int_mm"),
    [("decode", False), ("decode", True), (MANY_ROWS, False), (MANY_ROWS, True)],
    ids=["few", "few, int_mm", "many", "many, int_mm"],
)
@pytest.mark.parametrize("case", QUANTIZED_CASES.values(), ids=QUANTIZED_CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str | Bucket, int_mm: bool) -> None:
    graph = case.before(SelectToken, bucket)
    plan = graph.weight_plan
    checker = PassChecker(case.read)

    run_passes(graph, [NativeInt8Linear(int_mm)], observe=checker)

    counts = count(graph)
    # The last layer is cut to each row's last token before its o_proj: it and gate_up have few rows in any bucket.
    few = 2 if bucket is MANY_ROWS else 3 * LAYERS
    many = 3 * LAYERS - few
    if case.quantization.scheme == "w8a16":
        assert counts["gemma.skinny_int8_weight_linear"] == few
        assert counts["gemma.tiled_int8_weight_linear"] == many
    else:
        products = many if int_mm else 0
        assert counts["gemma.native_int8_linear"] == few + many - products
        assert counts["aten._int_mm"] == counts["gemma.dequantize"] == products
        assert checker.comparisons[0].error == 0.0
    assert graph.weight_plan == plan  # no copies
