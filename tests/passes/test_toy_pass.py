"""docs/recipes.md, "A pass", walked: a toy pass is added to a copy of the sources; this file is its test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT, import_path
from support.graphs import FLOAT32, LAYERS, find
from toy_pass import SwapSums

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.add_rms_norm import AddRMSNorm
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes

TOY = Path(__file__).with_name("toy_pass.py")
NAME = "swap_sums"


def graph_before() -> ModelGraph:
    return FLOAT32.before(AddRMSNorm, "decode")


def test_ops_before_ops_after_matches_numerics() -> None:
    graph = graph_before()
    sums = [node.args for node in graph.calls(torch.ops.aten.add.Tensor)]
    checker = PassChecker(FLOAT32.read)
    run_passes(graph, [SwapSums()], observe=checker)
    assert [len(node.args) for node in graph.calls(torch.ops.aten.add.Tensor)] == [2] * len(sums)
    assert graph.matches[NAME] == len(sums) == 2 * LAYERS
    assert checker.comparisons[0].error == 0.0


def test_a_sum_of_a_number_is_a_near_miss() -> None:
    graph = graph_before()
    find(graph, torch.ops.aten.add.Tensor, "layers.1").update_arg(1, 0.5)
    with pytest.raises(PassError, match=rf"{NAME} matched 3 times, expected 4 .*argument 1 is 0\.5"):
        run_passes(graph, [SwapSums()])


def recipe() -> list[str]:
    """The files that the section lists, with the pass's name in them."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = text.partition("## A pass\n")[2].partition("\n## ")[0]
    return [path.replace("NAME", NAME) for path in re.findall(r"^\d+\. `([^`]+)`", section, re.M)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the toy pass added as the recipe says, this test aside."""
    root = tmp_path_factory.mktemp("copy") / "sources"
    shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    source, pipeline, _ = recipe()
    shutil.copyfile(TOY, root / source)
    text = (root / pipeline).read_text(encoding="utf-8")
    for line, before in (
        (f"from graph_gemma.passes.{NAME} import SwapSums\n", "\nDEFAULT_PASSES"),
        ("    SwapSums,\n", "    QuantizeCache,\n"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, line + before)
    (root / pipeline).write_text(text, encoding="utf-8")
    return root


def run(root: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": import_path(root)}
    command = [sys.executable, *arguments]
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, f"{found.stdout[-3000:]}{found.stderr[-3000:]}"
    return found.stdout


def test_the_recipe_is_three_files() -> None:
    files = recipe()
    assert len(files) == 3
    assert [path for path in files if NAME not in path and not (ROOT / path).exists()] == []


def test_the_config_lists_it_and_contracts_find_it(copy: Path) -> None:
    assert run(copy, "-m", "graph_gemma.runners.settings.conf_files").split() == [
        str(copy / "conf" / "passes" / "default.yaml")
    ]
    assert f"passes.{NAME}.enabled=true" in run(copy, "runners/infer.py", "--help")
    contracts = run(copy, "-m", "pytest", "tests/passes/test_contracts.py", "-k", f"{NAME} or pass_is_found")
    assert re.search(r"\b4 passed", contracts)


@pytest.mark.slow
def test_its_golden_dump_is_written(copy: Path) -> None:
    golden = copy / "tests" / "data" / "golden" / "passes"
    before = {path.name for path in golden.iterdir()}
    run(copy, "-m", "pytest", "tests/passes/test_golden.py", "--update-golden", "-k", "equal_the_golden")
    assert f"extend-b2-t8-w2.10_{NAME}.txt" in {path.name for path in golden.iterdir()} - before
