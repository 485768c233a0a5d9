"""Collectives of a tensor-parallel step, lowered by torchair over the CANN stand-in and executed on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import lowered_collectives
from support.checkout import ROOT, import_path


@pytest.mark.ascend
@pytest.mark.slow
def test_collectives_of_two_ranks_are_lowered_and_executed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": import_path(ROOT, ROOT / "tests")}
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
