"""runners/compare.py: figures are those of the distributions, the rule decides the exit status, bad input is named."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS
from support.tokenizers import BOS, ids_of, make_tokenizer

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.compare import compare
from graph_gemma.runners.comparison import side

CONFIG = TINY_CONFIGS["grouped_kv_heads"]
PROMPTS = ["is it so?", "what is this?"]
Run = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("checkpoint")
    model = make_checkpoint(directory, CONFIG)
    make_tokenizer(directory, size=CONFIG.vocab_size)
    return directory, model


@pytest.fixture
def run(
    reference: tuple[Path, Any],
    sides_here: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [f"model.path={reference[0]}", "backend=eager", "dtype=float32", "max_new_tokens=12"]
        settings += [f"prompts={PROMPTS}", f"cache_dir={tmp_path / 'cache'}", f"results_dir={tmp_path / 'results'}"]
        return run_command(compare, "compare", [*settings, *arguments], capsys, monkeypatch)

    return call


def written(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The summary and the positions."""
    (summary,) = (tmp_path / "results").glob("comparison_*.json")
    (positions,) = (tmp_path / "results").glob("positions_*.csv")
    with positions.open(newline="") as file:
        return json.loads(summary.read_text()), list(csv.DictReader(file))


def changed(reference: tuple[Path, Any], directory: Path) -> Path:
    """A checkpoint of the same shape whose last layer's MLP writes nothing."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(reference[0], directory)
    tensors = load_file(directory / "model.safetensors")
    tensors[f"model.layers.{CONFIG.num_hidden_layers - 1}.mlp.down_proj.weight"].zero_()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_ours_and_transformers(run: Run, tmp_path: Path) -> None:
    result = run("b=transformers")
    assert result.status == 0, result.stderr
    assert "token agreement:  100.00% on the same prefixes, 2 answers alike" in result.stdout
    assert "divergence:       none" in result.stdout
    assert "rule:             holds" in result.stdout
    for bar in ("a: answers", "a: distributions", "b: answers", "b: distributions"):
        assert f"{bar}: 100%" in result.stderr
    summary, positions = written(tmp_path)
    assert (summary["a"]["computed_by"], summary["b"]["computed_by"]) == ("graph_gemma", "transformers")
    ran = summary["a"]["backend"], summary["b"]["backend"]
    assert ran == ("eager on cpu", f"transformers {transformers.__version__} on cpu")
    assert f"a ran on:         {ran[0]}\n" in result.stdout
    assert f"b ran on:         {ran[1]}\n" in result.stdout
    assert {(row["backend_a"], row["backend_b"]) for row in positions} == {ran}
    assert (summary["rule"], summary["first_divergence"], summary["prompts"]) == ("holds", None, 2)
    assert summary["positions"] == len(positions) == sum(row["prompt"] in "01" for row in positions)
    assert max(float(row["kl"]) for row in positions) == summary["kl_max"] < 1e-6


@torch.no_grad()
def test_a_broken_rule_ends_with_status_1_and_shows_where(
    reference: tuple[Path, Any], run: Run, tmp_path: Path
) -> None:
    other = changed(reference, tmp_path / "other")
    result = run(f"b=[model.path={other}]", "ignore_eos=true")
    assert result.status == 1
    assert "rule:             BROKEN (same precision: largest KL <= 0.001" in result.stdout
    summary, positions = written(tmp_path)
    assert (summary["rule"], len(positions)) == ("broken", 24)
    # Every figure from the two checkpoints' logits on the answers of the first.
    models = [type(reference[1]).from_pretrained(path).eval() for path in (reference[0], other)]
    agree = []
    for index, prompt in enumerate(PROMPTS):
        rows = [row for row in positions if row["prompt"] == str(index)]
        ids = [BOS, *ids_of(prompt), *(int(row["token_id"]) for row in rows)]
        a, b = (model(torch.tensor([ids[:-1]])).logits[0, -12:].log_softmax(-1) for model in models)
        kl = (a.exp() * (a - b)).sum(-1)
        for step, row in enumerate(rows):
            assert int(row["step"]) == step
            assert float(row["kl"]) == pytest.approx(float(kl[step]), rel=1e-2, abs=1e-5)
            best = int(a[step].argmax()), int(b[step].argmax())
            assert (int(row["best_a"]), int(row["best_b"])) == best
            assert best[0] == int(row["token_id"]), "a's answers are greedy"
            expected = [a[step, best[0]], b[step, best[0]], a[step, best[1]], b[step, best[1]]]
            found = [float(row[name]) for name in ("a_in_a", "a_in_b", "b_in_a", "b_in_b")]
            assert found == pytest.approx([float(value) for value in expected], abs=1e-3)
            agree.append((best, index, step, found))
    equal = sum(a == b for (a, b), *_ in agree)
    assert equal < 24, "the checkpoints differ enough"
    assert f"token agreement:  {equal / 24:.2%}" in result.stdout
    assert summary["token_agreement"] == pytest.approx(equal / 24)
    assert summary["kl_mean"] == pytest.approx(sum(float(row["kl"]) for row in positions) / 24)
    (best, text, step, probabilities) = next(entry for entry in agree if entry[0][0] != entry[0][1])
    assert f"first divergence: prompt {text}, token {step} of the answer, after" in result.stdout
    assert f"probability {math.exp(probabilities[0]):.4f} in a, {math.exp(probabilities[1]):.4f} in b" in result.stdout
    assert summary["first_divergence"]["token_ids"] == list(best)
    answer = [int(row["token_id"]) for row in positions if row["prompt"] == str(text)]
    before = [BOS, *ids_of(PROMPTS[text]), *answer[:step]][-16:]
    assert summary["first_divergence"]["after_token_ids"] == before


@pytest.mark.parametrize("b", ["[quant=w8a16]", "[dtype=bfloat16]", "[transformers,dtype=float16]"])
def test_sides_of_different_precision_have_no_rule(b: str, run: Run, tmp_path: Path) -> None:
    result = run(f"b={b}")
    assert result.status == 0, result.stderr
    assert "rule:             none, the sides differ in precision" in result.stdout
    assert written(tmp_path)[0]["kl_max"] > 1e-8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b=[]"], "a and b are the same configuration"),
        (["a=[dtype=float16]", "b=[dtype=float16]"], "a and b are the same configuration"),
        (["b=[1]"], "b is [1]; it must be a list of texts"),
        (["b=vllm"], "b holds 'vllm'; it must be a list of settings"),
        (["b=[backend=fast]"], "b: backend is 'fast'; it must be auto"),
        (["b=[no_such=1]"], "b: There is no setting no_such"),
        (["b=transformers", "results_dir=/dev/null/x"], "results_dir: /dev/null/x cannot be created"),
        (["b=[transformers,weights=random]"], "b: transformers needs a checkpoint"),
        (["b=transformers", "max_new_tokens=0"], "max_new_tokens is 0"),
        (["b=transformers", f"max_batch_size={2**63 - 1}"], "error: a: max_batch_size is 9223372036854775807"),
        (["b=transformers", "num_blocks=1000000000000"], "error: a: num_blocks is 1000000000000"),
    ],
)
def test_bad_settings_are_named(arguments: list[str], message: str, run: Run) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("memory", "disk", "where"), [(1e4, 1e9, "memory"), (1e9, 1e4, "the temporary directory")])
@pytest.mark.parametrize("peer", ["transformers", "[quant=w8a16]"])
def test_distributions_without_room_are_refused(
    peer: str, memory: float, disk: float, where: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the answers are there, and before the first distribution."""
    monkeypatch.setattr(side, "free_memory", lambda device: memory)
    monkeypatch.setattr(side, "disk_usage", lambda folder: SimpleNamespace(free=disk))
    result = run(f"a={peer}", "ignore_eos=true")
    assert result.status == 2
    assert "distributions: 100%" not in result.stderr
    size = 24 * CONFIG.vocab_size * 4
    assert f"error: a: 24 distributions of {CONFIG.vocab_size} tokens take {size / 1e6:.3g} MB" in result.stderr
    assert f"more than there is in {where}" in result.stderr


def test_an_empty_answer_is_refused(reference: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty answer"):
        side._complete(side.Texts([[5], [6]], [1, 1]), [[7], []])


def test_transformers_answers_end_where_ours_do(run: Run, tmp_path: Path) -> None:
    """At max_seq_len, which transformers does not know."""
    result = run("a=transformers", "max_seq_len=20", "max_new_tokens=30", "ignore_eos=true")
    assert result.status == 0, result.stderr
    assert "2 answers alike" in result.stdout
    assert len(written(tmp_path)[1]) == sum(20 - 1 - len(prompt) for prompt in PROMPTS)
