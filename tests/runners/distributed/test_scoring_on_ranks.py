"""evaluate.py and compare.py on several ranks: the log-probabilities of one."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from support import rank_processes as ranks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
COMMON = ["backend=eager", "dtype=float32", "ranks.master_port=null"]


def run(command: str, *arguments: str) -> str:
    process = ranks.start([str(ranks.ROOT / "runners" / command), *COMMON, *arguments])
    printed, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return printed


def test_evaluate(tmp_path: Path) -> None:
    found = []
    for world_size in (1, 2):
        results = tmp_path / str(world_size)
        printed = run(
            "evaluate.py", "limit=20", f"world_size={world_size}", f"results_dir={results}", f"cache_dir={tmp_path}"
        )
        assert ("2 ranks" in printed) == (world_size == 2)
        (samples,) = results.glob("samples_demo_*.csv")
        with samples.open() as file:
            found.append(list(csv.DictReader(file)))
    assert len(found[0]) == 20
    for one, two in zip(*found, strict=True):
        assert one["choice"] == two["choice"]
        for name in ("logprob_yes", "logprob_no"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=1e-4)


def test_compare(tmp_path: Path) -> None:
    settings = ["max_new_tokens=16", f"cache_dir={tmp_path}", f"results_dir={tmp_path / 'results'}"]
    printed = run("compare.py", "b=[world_size=2]", *settings)
    assert "token agreement:  100.00% on the same prefixes, 4 answers alike" in printed
    assert "rule:             holds" in printed
