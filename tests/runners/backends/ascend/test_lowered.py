"""torchair's lowering over the CANN stand-in, executed by the GE interpreter, against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lowered_cases
import lowered_collectives
import pytest
from lowered_cases import CASES
from support.standin_cases import A2, DUO, NEEDS_TORCH_NPU, ROOT, run_cases

pytestmark = NEEDS_TORCH_NPU


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every case ended with: one process per SoC, both at once over one stand-in cache."""
    directory = tmp_path_factory.mktemp("lowered")
    script = Path(lowered_cases.__file__)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda soc: run_cases(script, soc, directory, timeout=600), (A2, DUO)))
    return {**results[0], **results[1]}


@pytest.mark.slow
def test_collectives_of_two_ranks_are_lowered_and_executed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    command = [sys.executable, str(Path(lowered_collectives.__file__))]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(tmp_path / "cache")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


@pytest.mark.parametrize("name", CASES)
def test_lowered(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
