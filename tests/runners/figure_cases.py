"""Figures of benchmark.py and compile_matrix.py over the stand-in name it. See support.standin_cases."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standin_commands import checkpoint, command
from support.standin_cases import A2, ROOT, Cases

from runners.backends.ascend.standin import BANNER
from runners.benchmark import benchmark
from runners.compile_matrix import compile_matrix

CASES = Cases()


def called_here(name: str, function: Callable[[], Any], threads: int | None = None) -> Any:
    """As `in_new_process`, in this one: starting one takes seconds."""
    return function()


@CASES.add(A2)
def times_on_the_standin_are_said_to_be_of_it(folder: Path) -> None:
    settings = [*checkpoint(folder), "backend=torchair", "dtype=float16", "lengths=[[8,4]]", "repeats=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.benchmarking.phases.in_new_process", called_here)
        patch.setattr("runners.benchmarking.start_up.in_new_process", called_here)
        patch.setattr("runners.benchmarking.phases.print_host_time", lambda: None)  # of a model that computes nothing
        for phase, count in (("host", 1), ("compile", 2)):
            results = folder / phase
            status, out, err = command(
                benchmark, "benchmark", *settings, f"phase={phase}", f"results_dir={results}", "overwrite=true"
            )
            assert status == 0, err
            backend = out.splitlines()[0]
            assert backend.startswith("backend: torchair for Atlas 800I A2"), out
            assert backend.endswith(BANNER), out
            (file,) = results.iterdir()
            with file.open(newline="") as text:
                rows = list(csv.DictReader(text))
            assert [f"backend: {row['Backend']}" for row in rows] == [backend] * count


@CASES.add(A2)
def a_matrix_is_said_to_be_of_estimates_and_of_the_standin(folder: Path) -> None:
    """On the terminal, in the file that it writes, and in the pages of docs."""
    page = folder / "page.md"
    page.write_text(f"<!-- compile_matrix {A2} -->\n<!-- end -->\n")
    few = ("models=[gemma_2b]", "world_sizes=[1]", "dtypes=[float16]", "schemes=[none]", f"write={page}")
    status, out, err = command(compile_matrix, "compile_matrix", *few, f"cache_dir={folder / 'cache'}")
    assert status == 0, err
    heading, statement, empty, header, *_ = out.splitlines()
    assert heading == "Atlas 800I A2 (Ascend910B3), batch 1, context 2048"
    assert (empty, header[:9]) == ("", "| model |")
    assert "estimates" in statement
    assert "stand-in" in statement
    assert page.read_text() == f"<!-- compile_matrix {A2} -->\n{out.partition(heading)[2]}\n<!-- end -->\n"
    for name, tables in (("tensor_parallel", 2), ("quantization", 1)):
        shown = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert shown.count(f"\n{statement}\n\n| model |") == tables, name
