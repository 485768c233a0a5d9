"""runners/benchmark.py: the reference's columns, honest figures, peers on the same weights, refusals."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import CommandResult, run_command

from graph_gemma.runners.backends.ascend.standin import BANNER
from graph_gemma.runners.benchmark import benchmark

ROOT = Path(__file__).resolve().parents[3]
REFERENCE_COLUMNS = [
    "Model",
    "Batchsize",
    "In_seq",
    "Out_seq",
    "Total time(s)",
    "First token time(ms)",
    "Non-first token time(ms)",
    "Non-first token Throughput(Tokens/s)",
    "Throughput(Tokens/s)",
]

Run = Callable[..., CommandResult]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [
            f"model.path={checkpoint}",
            "backend=eager",
            "repeats=2",
            f"cache_dir={tmp_path / 'cache'}",
            f"results_dir={tmp_path / 'results'}",
            "overwrite=true",
            *arguments,
        ]
        return run_command(benchmark, "benchmark", settings, capsys, monkeypatch)

    return call


def test_results_have_the_reference_columns_and_agree(run: Run, tmp_path: Path) -> None:
    result = run("lengths=[[20,10],[8,4]]", "batch_sizes=[1,3]", "peers=[transformers]")
    assert result.status == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["benchmark.csv", "benchmark.html"]
    with (tmp_path / "results" / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:9] == REFERENCE_COLUMNS
    found = [(row["Runner"], row["In_seq"], row["Out_seq"], row["Batchsize"]) for row in rows]
    assert found == [
        (runner, prompt, answer, batch)
        for prompt, answer in (("20", "10"), ("8", "4"))
        for batch in ("1", "3")
        for runner in ("ours", "transformers")
    ]
    for row in rows:
        values = {name: number for name, text in row.items() if (number := _number(text)) is not None}
        batch, answer = values["Batchsize"], values["Out_seq"]
        assert row["Model"] == "tiny"
        total, first, step = (values[name] for name in REFERENCE_COLUMNS[4:7])
        assert 0 < first / 1e3 < total
        assert values["First token min(ms)"] <= first <= values["First token max(ms)"]
        assert values["Non-first token min(ms)"] <= step <= values["Non-first token max(ms)"]
        assert values["Step p50(ms)"] <= values["Step p90(ms)"] <= values["Step p99(ms)"]
        assert values["Non-first token Throughput(Tokens/s)"] == pytest.approx(batch / step * 1e3, rel=0.01)
        assert values["Throughput(Tokens/s)"] == pytest.approx(batch * answer / total, rel=0.01)
        assert values["Read bandwidth min(GB/s)"] <= values["Read bandwidth(GB/s)"]
        assert values["Peak / weights"] == pytest.approx(values["Peak memory(MB)"] / values["Weights(MB)"], rel=0.3)
        assert (row["Runner"] == "ours") == (row["Equal tokens"] == "")
        assert row["Precision"] == row["dtype"] == "float32"
        assert row["Note"] == ""
        assert row["Machine"]
        assert row["Date"].endswith("UTC")
    # In float32 the peer's tokens are ours.
    assert {row["Equal tokens"] for row in rows} == {"", "1.000"}
    ours, theirs = (next(row for row in rows if row["Runner"] == name) for name in ("ours", "transformers"))
    assert ours["Weights(MB)"] == theirs["Weights(MB)"]
    assert ours["Step reads(MB)"] == theirs["Step reads(MB)"]
    assert "ours (float32), batch 3, 8 + 4" in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith(("ours (", "transformers ("))]
    assert len(lines) == len(rows)
    for line in lines:
        assert ("eager on cpu; torch " if line.startswith("ours") else "; transformers ") in line
    page = (tmp_path / "results" / "benchmark.html").read_text()
    assert page.count("eager on cpu") == len(rows) / 2
    assert page.count("<rect") == len(rows)


@pytest.mark.slow
def test_the_largest_batch_within_a_latency_limit_is_named(run: Run, tmp_path: Path) -> None:
    arguments = ("phase=max_batch", "lengths=[[8,16]]", "largest_batch=3", "repeats=1")
    found = run(*arguments, "latency_limit_ms=1e5")
    assert "batch 3 is the largest within 100000 ms per token; the search ends at largest_batch=3" in found.stdout
    with (tmp_path / "results" / "max_batch.csv").open(newline="") as file:
        assert [row["Batchsize"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    none = run(*arguments, "latency_limit_ms=1e-4").stdout
    assert "no batch is the largest within 0.0001 ms per token; latency" in none


@pytest.mark.slow
def test_start_up_and_host_time_are_written(run: Run, tmp_path: Path) -> None:
    for phase in ("compile", "host"):
        result = run(f"phase={phase}", "lengths=[[8,4]]")
        assert result.status == 0, result.stderr
        with (tmp_path / "results" / f"{phase}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["Model"] for row in rows] == ["tiny"] * (2 if phase == "compile" else 1)
        assert {row["Backend"] for row in rows} == {"eager on cpu"}
        assert "backend: eager on cpu" in result.stdout.splitlines()
        assert rows[0]["Machine"]


@pytest.mark.slow
def test_two_ranks_are_measured_as_one_model(run: Run, tmp_path: Path) -> None:
    """The bytes of a step are those of all ranks: each has half of the weights, and its copy of the one KV head."""
    step_mb = {}
    for world_size in (1, 2):
        result = run(f"world_size={world_size}", "ranks.master_port=null", "lengths=[[8,4]]", "repeats=1")
        assert result.status == 0, result.stderr
        with (tmp_path / "results" / "benchmark.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["World size"] == str(world_size)
        step_mb[world_size] = float(row["Step reads(MB)"])
        weights_mb = float(row["Weights(MB)"])
    assert step_mb[1] < step_mb[2] < 1.3 * step_mb[1]  # norms, keys and values are on both
    assert weights_mb < 0.7 * step_mb[1]
    assert run("world_size=2", "ranks.master_port=null", "phase=compile", "lengths=[[8,4]]").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lengths=[[8000,500]]"], ["lengths", "8500", "max_seq_len"]),
        (["lengths=[8]"], ["lengths", "8"]),
        (["lengths=[[8,0]]"], ["lengths", "0"]),
        (["lengths=[]"], ["lengths"]),
        (["batch_sizes=[0]"], ["batch_sizes", "0"]),
        (["batch_sizes=4"], ["batch_sizes", "list"]),
        (["repeats=0"], ["repeats", "0"]),
        (["phase=fast"], ["phase", "fast", "max_batch"]),
        (["lengths=[[8,4]]", "peers=[vllm]"], ["peers", "vllm", "transformers"]),
        (["latency_limit_ms=-1"], ["latency_limit_ms", "-1"]),
        (["peers=[transformers,transformers]"], ["peers", "twice"]),
        (["check=true"], ["check", "graph-gemma infer"]),
        (["at_once=1"], ["at_once", "1"]),
        (["largest_batch=0"], ["largest_batch", "0"]),
        (["prompts=[text]"], ["prompts", "Leave it out"]),
        (["results_dir=/proc/none"], ["results_dir", "/proc/none"]),
        (["lengths=[[8,4]]", f"batch_sizes=[{2**63 - 1}]"], ["max_batch_size is 9223372036854775807"]),
        (["lengths=[[8,4]]", "num_blocks=1000000000000", "phase=host"], ["num_blocks is 1000000000000"]),
    ],
)
def test_bad_input_is_named(arguments: list[str], words: list[str], run: Run) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.ascend
@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is None, reason="needs the extra 'ascend'")
def test_the_standin_gives_an_estimate_and_no_speed(tmp_path: Path) -> None:
    arguments = ["model=gemma_2b", "weights=random", "backend=torchair", "dtype=float16", "lengths=[[64,64]]"]
    directories = [f"cache_dir={tmp_path / 'cache'}", f"results_dir={tmp_path / 'results'}", "overwrite=true"]
    command = [sys.executable, str(ROOT / "runners" / "benchmark.py"), *arguments, *directories]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "No speeds" in result.stdout
    assert "ESTIMATE" in result.stdout
    # 2.5 G parameters in float16 at the chip's 1.6 TB/s or less: a decode step takes at least 3 ms.
    step = float(result.stdout.split("decode step at least ")[1].split()[0])
    assert 3.0 < step < 10.0
    assert BANNER in result.stdout
    assert not list((tmp_path / "results").iterdir())
