"""The demo model on the stand-in: its answers, its steps under level 2's checks, its speed, and its commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chip_processes import A2, DUO, ROOT, on_each_chip
from support.standin_commands import answers_in, run_infer
from support.token_rule import check_greedy

from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.transformers_import import import_transformers
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.world import demo_prompts, held_out_stories
from graph_gemma.runners.llm import answer as answering

# float16, which both chips have, and one request at a time, so that few steps are compiled.
ANSWERING = ("dtype=float16", "max_batch_size=1", "max_prefill_batch_size=1")
STEPS_PER_SECOND = 20
ON_DUO = ("backend=torchair", f"soc={DUO}", "dtype=float16")


def answers_of_command(directory: Path, backend: str, *settings: str) -> list[dict[str, Any]]:
    """What `python runners/infer.py SETTINGS` answers to the demo's prompts, which it must also print, saying that
    `backend` did."""
    output = directory / "out.jsonl"
    places = [f"cache_dir={directory / 'cache'}", f"output_file={output}", "overwrite=true"]
    command = [sys.executable, str(ROOT / "runners" / "infer.py"), *settings, *places]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    answers = answers_in(output)
    assert [answer["prompt"] for answer in answers] == demo_prompts()
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("backend:"))
    assert backend in line
    for answer in answers:
        assert backend in answer["backend"]
        assert f"\n{answer['prompt']}{answer['text']}\n" in process.stdout
    return answers


@pytest.fixture(scope="module")
def inductors_answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The answers of the default backend to the demo's prompts."""
    return answers_of_command(tmp_path_factory.mktemp("inductor"), "inductor on cpu", *ANSWERING)


# Each chip's process compiles the default backend's steps anew, so that one of them does.
@pytest.mark.parametrize(
    "soc",
    [pytest.param(A2, marks=pytest.mark.chip(A2)), pytest.param(DUO, marks=[pytest.mark.chip(DUO), pytest.mark.slow])],
)
def test_the_demos_answers_are_inductors_and_transformers(
    soc: str, inductors_answers: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of one request takes at most 1/20 s of one core: other processes do not count."""
    seconds, run = 0.0, answering.answer

    def timed(*arguments: Any) -> Any:
        nonlocal seconds
        start = time.process_time()
        results = run(*arguments)
        seconds = time.process_time() - start
        return results

    monkeypatch.setattr(answering, "answer", timed)
    printed, answers = run_infer(tmp_path, "backend=torchair", f"soc={soc}", *ANSWERING)
    assert standin.BANNER in " ".join(printed.split())
    assert texts(answers) == texts(inductors_answers)
    assert len(answers) == len(demo_prompts())
    model = import_transformers().GemmaForCausalLM.from_pretrained(CHECKPOINT_DIR).to(torch.float16).eval()
    total = sum(len(answer["token_ids"]) for answer in answers)
    ties = sum(check_greedy(model, a["prompt_token_ids"], a["token_ids"]) for a in answers)
    assert total > 200
    assert ties <= total // 100, (ties, total)
    assert 0 < seconds <= total / STEPS_PER_SECOND


@on_each_chip
def test_the_demo_passes_its_checks(soc: str, tmp_path: Path) -> None:
    """Chunks, a prefix that the second prompt finds in the cache, and decode, each run checked node by node."""
    story = held_out_stories(1)[0]
    prompts = [f"{story}\n\n{demo_prompts()[-1]}", f"{story} One day"]
    settings = [f"prompts={json.dumps(prompts)}", "max_new_tokens=4", "ignore_eos=true", "check=true"]
    settings += ["max_prefill_tokens=64", "max_seq_len=256", "max_batch_size=1", "max_prefill_batch_size=1"]
    settings += ["dtype=float16"] if soc == DUO else []
    printed, answers = run_infer(tmp_path, "backend=torchair", f"soc={soc}", *settings)
    lengths = [len(answer["prompt_token_ids"]) for answer in answers]
    assert all(64 < length <= 192 for length in lengths), lengths
    # Only the first prompt's first chunk finds nothing in the cache.
    chunks = sum(-(-length // 64) for length in lengths)
    for bucket, runs in (("prefill-b1-t64", 1), ("extend-b1-t64-w4", chunks - 2), ("decode-b1-w4", 6)):
        assert f"check: lowered graph of {bucket} equals the graph that was lowered in {runs} runs" in printed, printed
    kernels = "ascend_fused_attention" if soc == A2 else "ascend_flat_attention"
    assert f"check: {kernels} (tolerant) holds on 4 graphs" in printed, printed
    assert "check: 8 tokens equal the plain model's" in printed, printed


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"] for answer in answers]


@pytest.mark.ascend
@pytest.mark.slow
def test_the_duos_command_answers_as_the_default_backend(
    inductors_answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert texts(answers_of_command(tmp_path, standin.BANNER, *ON_DUO)) == texts(inductors_answers)


@pytest.mark.ascend
@pytest.mark.slow
def test_the_a2s_command_follows_transformers_but_for_ties(tmp_path: Path) -> None:
    answers = answers_of_command(tmp_path, standin.BANNER, "backend=torchair")
    model = import_transformers().GemmaForCausalLM.from_pretrained(CHECKPOINT_DIR).to(torch.bfloat16).eval()
    ties = sum(check_greedy(model, a["prompt_token_ids"], a["token_ids"]) for a in answers)
    assert ties <= sum(len(a["token_ids"]) for a in answers) // 50, ties


@pytest.mark.ascend
@pytest.mark.slow
def test_the_commands_differ_from_the_default_by_ties_only(tmp_path: Path) -> None:
    """As a user types them. In float16 all is equal, and so it is in bfloat16, the demo's dtype, on the CPUs tried; on
    another, whose sums have another order, two words as likely to within rounding may be chosen otherwise once."""
    runs = {}
    for name, *settings in (("ours",), ("a2", "backend=torchair"), ("half", "dtype=float16"), ("duo", *ON_DUO)):
        (tmp_path / name).mkdir()
        backend = standin.BANNER if "backend=torchair" in settings else "inductor on cpu"
        runs[name] = answers_of_command(tmp_path / name, backend, *settings)
    assert texts(runs["duo"]) == texts(runs["half"])
    model = import_transformers().GemmaForCausalLM.from_pretrained(CHECKPOINT_DIR).to(torch.bfloat16).eval()
    parted = []
    for ours, theirs in zip(runs["ours"], runs["a2"], strict=True):
        ties = sum(check_greedy(model, each["prompt_token_ids"], each["token_ids"]) for each in (ours, theirs))
        if ours["text"] != theirs["text"]:
            parted.append(ours["index"])
            assert ties, "neither choice is a tie"
    assert len(parted) <= 1, parted
    assert len(demo_prompts()) - 1 not in parted, "the question has one answer"
