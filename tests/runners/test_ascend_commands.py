"""The commands that need a chip, and those that compare with one, over the stand-in."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import ascend_command_cases
import pytest
from ascend_command_cases import CASES
from standin_commands import PROMPTS, SERVING, checkpoint
from support.standin_cases import A2, NEEDS_TORCH_NPU, ROOT, run_cases

from runners.backends.ascend.standin import BANNER

SCRIPT = Path(ascend_command_cases.__file__)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_cases(SCRIPT, A2, tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("name", CASES.params(slow=False))
def test_on_the_standin(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", CASES.params(slow=True))
def test_slowly_on_the_standin(name: str, tmp_path: Path) -> None:
    outcome = run_cases(SCRIPT, CASES[name].soc, tmp_path, name)[name]
    assert not outcome, outcome


@pytest.mark.parametrize("sides", [pytest.param(["a=[backend=eager]", "b=[backend=torchair]"], marks=NEEDS_TORCH_NPU)])
def test_the_cpu_and_the_standin_keep_the_rule(sides: list[str], tmp_path: Path) -> None:
    """As a user compares them: each side has a process of its own."""
    settings = [*checkpoint(tmp_path), *SERVING, f"prompt_token_ids={json.dumps(PROMPTS)}", "max_new_tokens=6"]
    command = [sys.executable, str(ROOT / "runners/compare.py"), *sides, *settings, "ignore_eos=true"]
    done = subprocess.run(
        [*command, f"results_dir={tmp_path / 'results'}", "overwrite=true"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "compared:         12 next-token distributions behind 2 prompts" in done.stdout
    assert "rule:             holds" in done.stdout
    (path,) = (tmp_path / "results").glob("comparison_*.json")
    summary = json.loads(path.read_text())
    assert summary["kl_max"] > 0, "two ways to compute it, not one"
    (positions,) = (tmp_path / "results").glob("positions_*.csv")
    with positions.open(newline="") as file:
        row = next(csv.DictReader(file))
    (printed,) = (line for line in done.stdout.splitlines() if line.startswith("b ran on: "))
    for text in (printed, summary["b"]["backend"], row["backend_b"]):
        assert BANNER in text
    assert summary["a"]["backend"] == row["backend_a"] == "eager on cpu"
