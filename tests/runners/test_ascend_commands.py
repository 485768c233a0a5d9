"""Commands over the stand-in: figures name it, and what it computes is what the CPU does."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT, import_path
from support.chip_processes import A2
from support.standin_commands import PROMPTS, SERVING, TINY, checkpoint, command
from support.tokenizers import make_tokenizer

from graph_gemma.runners.backends.ascend.standin import BANNER
from graph_gemma.runners.benchmark import benchmark
from graph_gemma.runners.compile_matrix import compile_matrix
from graph_gemma.runners.evaluate import evaluate


def called_here(name: str, function: Callable[[], Any], threads: int | None = None) -> Any:
    """As `in_new_process`, in this one: starting one takes seconds."""
    return function()


@pytest.mark.chip(A2)
def test_times_on_the_standin_are_said_to_be_of_it(tmp_path: Path) -> None:
    settings = [*checkpoint(tmp_path), "backend=torchair", "dtype=float16", "lengths=[[8,4]]", "repeats=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graph_gemma.runners.benchmarking.phases.in_new_process", called_here)
        patch.setattr("graph_gemma.runners.benchmarking.start_up.in_new_process", called_here)
        patch.setattr(
            "graph_gemma.runners.benchmarking.phases.print_host_time", lambda: None
        )  # of a model that computes nothing
        for phase, count in (("host", 1), ("compile", 2)):
            results = tmp_path / phase
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


@pytest.mark.chip(A2)
def test_a_matrix_is_said_to_be_of_estimates_and_of_the_standin(tmp_path: Path) -> None:
    """On the terminal, in the file that it writes, and in the pages of docs."""
    page = tmp_path / "page.md"
    page.write_text(f"<!-- compile_matrix {A2} -->\n<!-- end -->\n")
    few = ("models=[gemma_2b]", "world_sizes=[1]", "dtypes=[float16]", "schemes=[none]", f"write={page}")
    status, out, err = command(compile_matrix, "compile_matrix", *few, f"cache_dir={tmp_path / 'cache'}")
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


@pytest.mark.chip(A2)
def test_evaluate_finds_on_the_standin_what_it_finds_on_the_cpu(tmp_path: Path) -> None:
    settings = [*checkpoint(tmp_path), *SERVING]
    make_tokenizer(tmp_path / "checkpoint", size=TINY.vocab_size)
    item = {"title": "T", "passage": "abc", "question": "is it", "answer": True}
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    found = []
    for backend in ("eager", "torchair"):
        results = [f"backend={backend}", f"dataset={tmp_path / 'items.jsonl'}", f"results_dir={tmp_path / backend}"]
        status, _, err = command(evaluate, "evaluate", *settings, *results)
        assert status == 0, err
        (samples,) = (tmp_path / backend).glob("samples_*.csv")
        with samples.open(newline="") as file:
            found.append(next(csv.DictReader(file)))
        (written,) = (tmp_path / backend).glob("results_*.json")
        soc = json.loads(written.read_text())["config"]["model_args"]["soc"]
        assert soc == (None if backend == "eager" else A2)
    for name in ("logprob_yes", "logprob_no"):
        assert abs(float(found[0][name]) - float(found[1][name])) < 0.05, found


@pytest.mark.ascend
def test_the_cpu_and_the_standin_keep_the_rule(tmp_path: Path) -> None:
    """As a user compares them: each side has a process of its own."""
    settings = [*checkpoint(tmp_path), *SERVING, f"prompt_token_ids={json.dumps(PROMPTS)}", "max_new_tokens=6"]
    sides = ["a=[backend=eager]", "b=[backend=torchair]"]
    run = [sys.executable, str(ROOT / "runners/compare.py"), *sides, *settings, "ignore_eos=true"]
    done = subprocess.run(
        [*run, f"results_dir={tmp_path / 'results'}", "overwrite=true"],
        env={**os.environ, "PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "compared:         12 next-token distributions after 2 prompts" in done.stdout
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
