"""docs/recipes.md, "A pass": a toy pass is a file, its golden dump and this test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.graphs import FLOAT32, LAYERS, find
from toy_pass import SwapSums

from graph_model.graph import ModelGraph
from passes.add_rms_norm import AddRMSNorm
from passes.check import PassChecker
from passes.framework.contract import PassError
from passes.framework.manager import run_passes

GOLDEN = Path(__file__).with_name("toy_pass.txt")


def graph_before() -> ModelGraph:
    return FLOAT32.before(AddRMSNorm, "decode")


def test_ops_before_ops_after_matches_numerics() -> None:
    graph = graph_before()
    sums = [node.args for node in graph.calls(torch.ops.aten.add.Tensor)]
    checker = PassChecker(FLOAT32.read)
    run_passes(graph, [SwapSums()], observe=checker)
    assert [len(node.args) for node in graph.calls(torch.ops.aten.add.Tensor)] == [2] * len(sums)
    assert graph.matches["swap_sums"] == len(sums) == 2 * LAYERS
    assert checker.comparisons[0].error == 0.0


def test_the_dump_is_the_golden_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run_passes(graph_before(), [SwapSums()], dump_dir=tmp_path)
    (text,) = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("01_swap_sums.txt")]
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_a_sum_of_a_number_is_a_near_miss() -> None:
    graph = graph_before()
    find(graph, torch.ops.aten.add.Tensor, "layers.1").update_arg(1, 0.5)
    with pytest.raises(PassError, match=r"swap_sums matched 3 times, expected 4 .*argument 1 is 0\.5"):
        run_passes(graph, [SwapSums()])
