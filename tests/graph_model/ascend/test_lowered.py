"""torchair's lowering over the CANN stand-in, executed by the GE interpreter, against plain torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import lowered_cases
import pytest

pytestmark = [
    pytest.mark.ascend,
    pytest.mark.skipif(importlib.util.find_spec("torch_npu") is None, reason="torch_npu is not installed"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What every case ended with, by SoC: one process each, both at once over one stand-in cache."""
    directory = tmp_path_factory.mktemp("lowered")
    script = Path(lowered_cases.__file__)
    processes = {}
    for soc in (lowered_cases.A2, lowered_cases.DUO):
        command = [sys.executable, str(script), soc, str(directory / "cache"), str(directory / f"{soc}.json")]
        processes[soc] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    results = {}
    for soc, process in processes.items():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        results[soc] = json.loads((directory / f"{soc}.json").read_text())
    return results


@pytest.mark.slow
def test_collectives_of_two_ranks_are_lowered_and_executed(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(lowered_cases.__file__)), "collectives"]
    arguments = [str(tmp_path / "store"), str(tmp_path / "cache")]
    ranks = [
        subprocess.Popen([*script, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    for process in ranks:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


@pytest.mark.parametrize("name", lowered_cases.CASES)
def test_lowered(name: str, outcomes: dict[str, dict[str, str]]) -> None:
    soc, _ = lowered_cases.CASES[name]
    assert not outcomes[soc][name], outcomes[soc][name]
