"""Cases that need torch_npu over the stand-in: a script of cases runs in processes of its own, one per SoC.

torch_npu changes torch and keeps the chip's name for the life of a process, so a script registers its cases with
`Cases`, ends with ``if __name__ == "__main__": CASES.main()``, and a test module asks `run_cases` for their outcomes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import graph_model  # noqa: F401  (before torch)

ROOT = Path(__file__).parents[2]
A2, DUO = "atlas_800i_a2", "atlas_300i_duo"
NEEDS_TORCH_NPU = [
    pytest.mark.ascend,
    pytest.mark.skipif(importlib.util.find_spec("torch_npu") is None, reason="torch_npu is not installed"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"),
]

Run = Callable[[Path], None]  # gets an empty folder


@dataclass(frozen=True)
class Case:
    soc: str
    run: Run
    slow: bool = False


class Cases(dict[str, Case]):
    """Cases by name, in the order in which they run."""

    def add(self, soc: str, slow: bool = False) -> Callable[[Run], Run]:
        def register(function: Run) -> Run:
            self[function.__name__] = Case(soc, function, slow)
            return function

        return register

    def params(self, slow: bool) -> list[object]:
        """The names of the fast or of the slow cases, as pytest's parameters."""
        marks = [*NEEDS_TORCH_NPU, pytest.mark.slow] if slow else NEEDS_TORCH_NPU
        return [pytest.param(name, marks=marks) for name, case in self.items() if case.slow == slow]

    def main(self) -> None:
        """SCRIPT SOC CACHE_DIR RESULTS.json [CASE ...]: run cases and write {case: error text or ""}."""
        import torch

        from graph_model.chips.registry import find_soc
        from runners.backends.ascend import standin
        from runners.backends.ascend.register import register_kernels

        soc, cache_dir, results, *only = sys.argv[1:]
        torch.set_num_threads(1)
        assert standin.load(find_soc(soc), Path(cache_dir) / "cann_standin") == standin.is_standin()
        register_kernels()
        outcomes = {}
        for name in only or [name for name, case in self.items() if case.soc == soc and not case.slow]:
            start = time.perf_counter()
            try:
                with tempfile.TemporaryDirectory() as folder:
                    self[name].run(Path(folder))
                outcomes[name] = ""
            except BaseException:
                outcomes[name] = traceback.format_exc()
            print(f"{name}: {time.perf_counter() - start:.1f} s")
        Path(results).write_text(json.dumps(outcomes), encoding="utf-8")


def run_cases(script: Path, soc: str, directory: Path, *names: str, timeout: float = 1800) -> dict[str, str]:
    """What the cases ended with: the named ones, or all of the SoC's fast ones."""
    results = directory / f"{script.stem}-{soc}.json"
    command = [sys.executable, str(script), soc, str(directory / "cache"), str(results), *names]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", script.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert process.returncode == 0, process.stdout + process.stderr
    print(process.stdout)  # times, for pytest -s
    outcomes: dict[str, str] = json.loads(results.read_text(encoding="utf-8"))
    return outcomes
