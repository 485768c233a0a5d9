"""runners/infer.py: a checkpoint saved by transformers gives the tokens that transformers gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS
from support.token_rule import ROUNDS_ONCE, check_greedy

from graph_gemma.runners.backends.inductor import cpp_compiler
from graph_gemma.runners.infer import infer
from graph_gemma.runners.settings.model_settings import NAMED_CONFIGS

Run = Callable[..., CommandResult]

# From one token to several blocks of 16, on and next to their boundaries, and beyond one chunk of 64 tokens.
LENGTHS = (1, 2, 15, 16, 17, 32, 47, 63, 64, 65, 100, 131)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [f"cache_dir={tmp_path / 'cache'}", *arguments]
        return run_command(infer, "infer", settings, capsys, monkeypatch)

    return call


def random_prompts(vocab_size: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def lines(path: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda line: line["index"])


def answers(
    run: Run, checkpoint: Path, lengths: tuple[int, ...], vocab_size: int, *settings: str
) -> list[dict[str, Any]]:
    """The answers to random prompts of these lengths, in blocks of 16 and chunks of 64 tokens."""
    output = checkpoint.parent / "out.jsonl"
    prompts = random_prompts(vocab_size, lengths)
    given = [f"model.path={checkpoint}", f"prompt_token_ids={json.dumps(prompts)}", f"output_file={output}"]
    small = ["block_size=16", "max_prefill_tokens=64", "ignore_eos=true", "overwrite=true"]
    result = run(*given, *small, *settings)
    assert result.status == 0, result.stderr
    found = lines(output)
    assert [answer["prompt_token_ids"] for answer in found] == prompts
    return found


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_tokens_equal_those_of_transformers_in_float32(name: str, run: Run, tmp_path: Path) -> None:
    config = TINY_CONFIGS[name]
    model = make_checkpoint(tmp_path / "checkpoint", config)
    settings = ("backend=eager", "max_batch_size=3", "max_new_tokens=24")
    found = answers(run, tmp_path / "checkpoint", LENGTHS, config.vocab_size, *settings)
    assert all(len(answer["token_ids"]) == 24 for answer in found)
    for answer in found:
        assert check_greedy(model, answer["prompt_token_ids"], answer["token_ids"]) == 0


@ROUNDS_ONCE
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tokens_follow_the_token_rule_in_16_bit(dtype: str, run: Run, tmp_path: Path) -> None:
    config = TINY_CONFIGS["one_kv_head"]
    model = make_checkpoint(tmp_path / "checkpoint", config, dtype=getattr(torch, dtype))
    settings = ("backend=eager", "max_new_tokens=32")
    found = answers(run, tmp_path / "checkpoint", LENGTHS, config.vocab_size, *settings)
    total = sum(len(answer["token_ids"]) for answer in found)
    assert total == len(LENGTHS) * 32
    assert sum(check_greedy(model, a["prompt_token_ids"], a["token_ids"]) for a in found) <= 0.01 * total


def test_check_mode_reports_every_pass_and_the_answers(run: Run, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY_CONFIGS["grouped_kv_heads"])
    result = run(
        f"model.path={tmp_path}", "backend=eager", "prompt_token_ids=[[5,6,7]]", "max_new_tokens=8", "check=true"
    )
    assert result.status == 0, result.stderr
    assert "check: paged_attention (tolerant) holds on 4 graphs" in result.stdout
    assert "tokens equal the plain model's, 0 of them within rounding" in result.stdout


def test_sampling_repeats_by_seed_and_differs_between_prompts(run: Run, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY_CONFIGS["one_kv_head"])

    def sample(seed: int) -> list[list[int]]:
        output = tmp_path / f"{seed}.jsonl"
        result = run(
            f"model.path={tmp_path}",
            "backend=eager",
            "prompt_token_ids=[[5,6,7],[5,6,7]]",
            "max_new_tokens=12",
            "ignore_eos=true",
            "sampling.temperature=1",
            f"sampling.seed={seed}",
            f"output_file={output}",
            "overwrite=true",
        )
        assert result.status == 0, result.stderr
        return [line["token_ids"] for line in lines(output)]

    first = sample(0)
    assert first == sample(0)
    assert first[0] != first[1]
    assert sample(1)[0] == first[1]


def test_dumps_are_written_for_each_pass_of_each_bucket(run: Run, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY_CONFIGS["one_kv_head"])
    dumps = tmp_path / "dumps"
    arguments = ("backend=eager", "prompt_token_ids=[[5,6,7]]", "max_new_tokens=2", f"dump_dir={dumps}")
    result = run(f"model.path={tmp_path}", *arguments)
    assert result.status == 0, result.stderr
    assert sorted(folder.name for folder in dumps.iterdir()) == ["decode-b1-w4", "prefill-b1-t64"]
    files = sorted(file.name for file in (dumps / "decode-b1-w4").iterdir())
    assert files[0] == "00_capture.txt"
    assert files[-1] == "11_select_token.txt"


@pytest.mark.skipif(cpp_compiler() is None, reason="Inductor needs a C++ compiler")
def test_inductor_follows_transformers_and_starts_from_cache(run: Run, tmp_path: Path) -> None:
    """One layer: compiling takes most of the time, and test_inductor.py has steps of two."""
    config = replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1)
    model = make_checkpoint(tmp_path / "checkpoint", config)
    small = ("max_seq_len=128", "max_batch_size=1", "max_prefill_batch_size=1")
    settings = ("backend=inductor", "max_new_tokens=24", *small)
    printed: list[str] = []

    def recorded(*arguments: str) -> CommandResult:
        result = run(*arguments)
        printed.append(result.stdout)
        return result

    made = []
    for _ in range(2):
        found = answers(recorded, tmp_path / "checkpoint", (1, 15, 17, 64), config.vocab_size, *settings)
        assert "inductor on cpu" in printed[-1]
        steps = re.search(r"steps: +(\d+) compiled, (\d+) from the cache", printed[-1])
        assert steps, printed[-1]
        made.append(tuple(map(int, steps.groups())))
        for answer in found:
            assert len(answer["token_ids"]) == 24
            assert check_greedy(model, answer["prompt_token_ids"], answer["token_ids"]) == 0
    compiled = made[0][0]
    assert compiled >= 2
    assert made == [(compiled, 0), (0, compiled)]


def test_random_weights_of_a_named_size_have_no_tokenizer(run: Run) -> None:
    result = run("model=gemma_2b", "weights=random", "backend=eager", "prompts=[hello]")
    assert result.status == 2
    assert "has no tokenizer, so prompts must be token ids" in result.stderr


@pytest.mark.parametrize("given", [True, False])
def test_random_weights_need_no_checkpoint(
    given: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named size, or the shape of a config.json; a tiny one stands for Gemma-2B here."""
    config = TINY_CONFIGS["one_kv_head"]
    if given:
        (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
        model = [f"model.path={tmp_path}"]
    else:
        monkeypatch.setitem(NAMED_CONFIGS, "gemma_2b", config)
        model = ["model=gemma_2b"]
    result = run(
        *model, "weights=random", "backend=eager", "prompt_token_ids=[[2,3]]", "max_new_tokens=5", "ignore_eos=true"
    )
    assert result.status == 0, result.stderr
    answer = result.stdout.strip().splitlines()[0].split()
    assert answer[:2] == ["2", "3"]
    assert len(answer) == 2 + 5
    assert all(0 <= int(token) < config.vocab_size for token in answer)
