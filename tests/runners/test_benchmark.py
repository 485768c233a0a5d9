"""runners/benchmark.py: the reference's columns, honest figures, peers on the same weights, refusals."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS

from runners.bench.bandwidth import ReadProbe, decode_step_bytes
from runners.bench.engine_runner import EngineRunner
from runners.bench.peers import make_peers
from runners.bench.timing import Case, Timing, random_prompts, summarise
from runners.benchmark import benchmark
from runners.engine.sampling_params import SamplingParams
from runners.llm import LLM

ROOT = Path(__file__).resolve().parents[2]
CONFIG = TINY_CONFIGS["one_kv_head"]
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_checkpoint(directory, CONFIG)
    return directory


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [
            f"model.path={checkpoint}",
            "backend=eager",
            "repeats=2",
            f"cache_dir={tmp_path / 'cache'}",
            f"results_dir={tmp_path / 'results'}",
            *arguments,
        ]
        return run_command(benchmark, "benchmark", settings, capsys, monkeypatch)

    return call


def test_results_have_the_reference_columns_and_agree_with_themselves(run: Run, tmp_path: Path) -> None:
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
        values = {name: float(text) for name, text in row.items() if name not in ("Model", "Runner") and text}
        batch, answer = values["Batchsize"], values["Out_seq"]
        assert row["Model"] == "tiny"
        total, first, step = (values[name] for name in REFERENCE_COLUMNS[4:7])
        assert 0 < first / 1e3 < total
        assert values["First token min(ms)"] <= first <= values["First token max(ms)"]
        assert values["Non-first token min(ms)"] <= step <= values["Non-first token max(ms)"]
        assert values["Step p50(ms)"] <= values["Step p90(ms)"] <= values["Step p99(ms)"]
        assert values["Non-first token Throughput(Tokens/s)"] == pytest.approx(batch / step * 1e3, rel=0.01)
        assert values["Throughput(Tokens/s)"] == pytest.approx(batch * answer / total, rel=0.01)
        assert values["Read bandwidth(GB/s)"] > 0
    page = (tmp_path / "results" / "benchmark.html").read_text()
    assert page.count("<rect") == len(rows)


@pytest.mark.slow
def test_the_largest_batch_within_a_latency_limit_is_named(run: Run) -> None:
    arguments = ("phase=max_batch", "lengths=[[8,4]]", "batch_sizes=[1,2]", "repeats=1")
    assert "batch 2 is within 100000 ms" in run(*arguments, "latency_limit_ms=1e5").stdout
    assert "no batch is within 0.0001 ms" in run(*arguments, "latency_limit_ms=1e-4").stdout


@pytest.mark.slow
def test_getting_ready_is_timed(run: Run, tmp_path: Path) -> None:
    result = run("phase=compile", "lengths=[[8,4]]")
    assert result.status == 0, result.stderr
    seconds = {line.split(":")[0]: float(line.split(":")[1].split()[0]) for line in result.stdout.splitlines()}
    assert list(seconds) == ["capture", "passes", "ready to run, cold", "ready to run, warm"]
    assert 0 < seconds["capture"] < 60
    assert not list((tmp_path / "results").iterdir())


def test_every_run_computes_its_prompts_and_every_answer_has_its_length(checkpoint: Path, tmp_path: Path) -> None:
    case = Case(batch=2, prompt=70, answer=6)
    with LLM([f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path}", "block_size=16"]) as llm:
        ours = EngineRunner(llm)
        for runner in [ours, *make_peers(["transformers"], llm.loaded)]:
            for seed in range(2):
                timing = runner.run(random_prompts(case, CONFIG.vocab_size, seed), case.answer)
                assert len(timing.step_s) == case.answer - 1, runner.name
                assert timing.first_s > 0
        statistics = llm.engine.statistics
        assert statistics.cached_prompt_tokens == 0
        assert statistics.prompt_tokens == 2 * case.batch * case.prompt
        # What a step reads: each parameter once, and keys and values of the context half-way.
        parameters = sum(p.numel() for p in make_peers(["transformers"], llm.loaded)[0]._model.parameters())
        context = 2 * CONFIG.num_hidden_layers * CONFIG.num_key_value_heads * CONFIG.head_dim * (70 + 3)
        assert decode_step_bytes(llm.loaded.model, case) == pytest.approx(4 * (parameters + 2 * context), rel=0.02)


def test_a_step_with_an_int8_head_does_not_read_the_embedding_that_it_was_made_from(
    checkpoint: Path, tmp_path: Path
) -> None:
    case = Case(batch=1, prompt=8, answer=2)
    c = CONFIG
    assert c.tie_word_embeddings
    attention = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim * c.hidden_size
    layer = attention + 3 * c.hidden_size * c.intermediate_size
    int8 = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
    settings = [f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path}", "quant=w8a16"]
    with LLM(settings) as llm:
        llm.warm_up([[2] * case.prompt], SamplingParams(max_new_tokens=case.answer), once=True)
        read = decode_step_bytes(llm.loaded.model, case)
    assert int8 < read < 1.2 * int8  # besides the matrices: scales, norms, keys and values


def test_medians_and_spread_over_repeats() -> None:
    timings = [Timing(1.0, [0.1, 0.2, 0.3]), Timing(3.0, [0.4, 0.5, 0.6]), Timing(2.0, [0.7, 0.8, 0.9])]
    summary = summarise(Case(1, 1, 4), "ours", timings)
    assert summary.first_s == 2.0
    assert summary.first_range_s == (1.0, 3.0)
    assert summary.step_s == 0.5
    assert summary.step_range_s == (0.2, 0.8)
    assert summary.total_s == pytest.approx(4.4)
    assert summary.step_percentiles_s == pytest.approx((0.5, 0.82, 0.892))
    assert summarise(Case(1, 1, 1), "ours", [Timing(1.0, [])]).step_s == 0.0


def test_the_probe_is_no_faster_than_memory_can_be() -> None:
    assert 1e8 < ReadProbe(torch.device("cpu")).bytes_per_s() < 2e12


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
        (["prompts=[text]"], ["prompts", "Leave it out"]),
        (["results_dir=/proc/none"], ["results_dir", "/proc/none"]),
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
    directories = [f"cache_dir={tmp_path / 'cache'}", f"results_dir={tmp_path / 'results'}"]
    command = [sys.executable, str(ROOT / "runners" / "benchmark.py"), *arguments, *directories]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "No speeds" in result.stdout
    assert "ESTIMATE" in result.stdout
    # 2.5 G parameters in float16 at the chip's 1.6 TB/s or less: a decode step takes at least 3 ms.
    step = float(result.stdout.split("decode step at least ")[1].split()[0])
    assert 3.0 < step < 10.0
    assert not list((tmp_path / "results").iterdir())
