"""runners/evaluate.py: choices and perplexity are those of transformers, reports are complete, bad input is named."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS
from support.tokenizers import BOS, UNK, ids_of, make_tokenizer

from graph_model import demo
from graph_model.errors import UserError
from runners.evaluate import evaluate
from runners.evaluation.harness import unreachable

CONFIG = TINY_CONFIGS["untied_head"]
ITEMS = [
    {"title": f"T{n}", "passage": "abc " * n, "question": f"is it {n}", "answer": n % 2 == 0} for n in (1, 2, 3, 5)
]
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra evaluate is missing")
Run = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("checkpoint")
    model = make_checkpoint(directory, CONFIG)
    make_tokenizer(directory, size=CONFIG.vocab_size)
    return directory, model


@pytest.fixture
def run(
    reference: tuple[Path, torch.nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [f"model.path={reference[0]}", "backend=eager", f"cache_dir={tmp_path / 'cache'}"]
        settings += [f"results_dir={tmp_path / 'results'}", "max_seq_len=128"]
        names = {argument.split("=", 1)[0] for argument in arguments}
        kept = [setting for setting in settings if setting.split("=", 1)[0] not in names]
        return run_command(evaluate, "evaluate", [*kept, *arguments], capsys, monkeypatch)

    return call


def write_items(path: Path, lines: list[object]) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


@torch.no_grad()
def logprob(model: torch.nn.Module, ids: list[int], count: int) -> float:
    """Of the last `count` of the ids."""
    rows = model(torch.tensor([ids[:-1]])).logits[0, -count:].log_softmax(-1)
    return float(rows.gather(-1, torch.tensor(ids[-count:])[:, None]).sum())


def encode(text: str) -> list[int]:
    return [BOS, *(UNK if character == "|" else ids_of(character)[0] for character in text)]


def test_items_and_a_text(reference: tuple[Path, torch.nn.Module], tmp_path: Path, run: Run) -> None:
    items = write_items(tmp_path / "items.jsonl", [ITEMS[0], "", *ITEMS[1:]])
    text = "one two three, " * 20
    (tmp_path / "text.txt").write_text(text)
    result = run(f"dataset={items}", f"perplexity={tmp_path / 'text.txt'}")
    assert result.status == 0, result
    model = reference[1]
    with (tmp_path / "results" / "samples_items.jsonl.csv").open() as file:
        rows = list(csv.DictReader(file))
    hits = []
    for item, row in zip(ITEMS, rows, strict=True):
        # The tokenizer of characters has no line break: it is <unk>, one for both.
        prompt = f"{item['title']} -- {item['passage']}|Question: {item['question']}?|Answer:"
        yes, no = (logprob(model, encode(prompt + text), len(text)) for text in (" yes", " no"))
        assert float(row["logprob_yes"]) == pytest.approx(yes, abs=1e-3)
        assert float(row["logprob_no"]) == pytest.approx(no, abs=1e-3)
        assert row["choice"] == ("yes" if yes > no else "no")
        hits.append(float((yes > no) == item["answer"]))
        assert float(row["acc"]) == hits[-1]
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    mean = sum(hits) / 4
    assert found["results"]["items.jsonl"]["acc,none"] == mean
    deviation = torch.tensor(hits).std().item()
    assert found["results"]["items.jsonl"]["acc_stderr,none"] == pytest.approx(deviation / 2)
    assert found["n-samples"]["items.jsonl"] == {"original": 4, "effective": 4}
    # A token is a character: 300 of them behind <bos>, in windows of 127, the last of which reaches back.
    ids = encode(text)
    total = 0.0
    for first in range(1, len(ids), 127):
        end = min(first + 127, len(ids))
        total += logprob(model, ids[max(0, end - 128) : end], end - first)
    perplexity = found["results"]["text.txt"]["token_perplexity,none"]
    assert perplexity == pytest.approx(math.exp(-total / 300), rel=1e-3)
    assert "samples/s" in result.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ({"title": "t", "passage": "p", "question": "q"}, "line 2: answer is missing"),
        ({"title": "t", "passage": "p", "question": "q", "answer": "yes"}, "line 2: answer is 'yes'"),
        ({"title": "t", "passage": 5, "question": "q", "answer": True}, "line 2: passage is 5"),
        ({"title": "t", "passage": "p" * 200, "question": "q", "answer": True}, "line 2: .* max_seq_len is 128"),
    ],
)
def test_the_line_at_fault_is_named(line: object, message: str, tmp_path: Path, run: Run) -> None:
    result = run(f"dataset={write_items(tmp_path / 'items.jsonl', [ITEMS[0], line])}")
    assert result.status == 2
    assert re.match(rf"error: .*{message}", result.stderr.splitlines()[-1])
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dataset=/no/such/file", "dataset: /no/such/file cannot be read"),
        ("perplexity=/no/such/file", "perplexity: /no/such/file cannot be read"),
        ("perplexity=/dev/null", "no text to score"),
        ("dataset=/dev/null", "holds no items"),
        ("limit=0", "limit is 0"),
        ("tasks=[1]", "tasks is"),
        ("results_dir=/dev/null/x", "results_dir: /dev/null/x cannot be created"),
    ],
)
def test_bad_settings_are_named(argument: str, message: str, run: Run) -> None:
    result = run(argument)
    assert result.status == 2
    assert message in result.stderr


def test_a_missing_harness_is_named_with_the_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name))
    result = run("tasks=[boolq]")
    assert result.status == 2
    assert "pip install 'graph-gemma[evaluate]'" in result.stderr


def test_a_download_that_fails_says_what_to_place_where() -> None:
    pytest.importorskip("huggingface_hub")
    error = RuntimeError("task boolq")
    error.__cause__ = ConnectionError("no route")
    refusal = unreachable(["boolq"], error)
    assert isinstance(refusal, UserError)
    assert re.search(r"hf download --repo-type dataset .*datasets--\* .*hub", str(refusal))
    other = ValueError("a bug")
    assert unreachable(["boolq"], other) is other


@needs_harness
def test_an_unknown_task_gets_the_near_names(run: Run) -> None:
    result = run("tasks=[demo_comprehensio]")
    assert result.status == 2
    assert "Near names: demo_comprehension" in result.stderr


@pytest.mark.slow
@needs_harness
def test_the_harness_our_command_and_transformers_agree_in_every_sample(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same items: evaluate.py's own way, the harness's command line on our model, and its HFLM."""
    pytest.importorskip("accelerate")  # the harness's HFLM asks for it
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    common = [f"model.path={demo.CHECKPOINT_DIR}", "max_seq_len=256", "dtype=float32", "limit=100"]
    assert run(*common).status == 0
    with (tmp_path / "results" / "samples_demo.csv").open() as file:
        own = [float(row["acc"]) for row in csv.DictReader(file)]
    root = Path(evaluate.__code__.co_filename).parents[1]
    choices = {}
    for model, arguments in (
        ("graph_gemma", "backend=eager,dtype=float32,max_seq_len=256"),
        ("hf", f"pretrained={demo.CHECKPOINT_DIR},dtype=float32"),
    ):
        out = tmp_path / model
        command = [sys.executable, str(root / "runners" / "lm_eval_cli.py"), "run", "--model", model, "--device", "cpu"]
        command += ["--model_args", arguments, "--tasks", "demo_comprehension", "--limit", "100", "--log_samples"]
        subprocess.run([*command, "--output_path", str(out)], check=True, env={**os.environ, "PYTHONPATH": str(root)})
        (samples,) = out.rglob("samples_demo_comprehension_*.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        choices[model] = [(row["acc"], float(row["resps"][1][0][0]) > float(row["resps"][0][0][0])) for row in rows]
    assert choices["graph_gemma"] == choices["hf"]
    assert [acc for acc, _ in choices["graph_gemma"]] == own
    assert len(own) == 100
