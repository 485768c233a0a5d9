"""python runners/activations.py, as users call it: what it says of float16 is what runs in float16 do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_model
from support.cli import CommandResult, run_command
from support.configs import LATER_CONFIGS
from support.tokenizers import make_tokenizer

from graph_gemma.runners.activations import activations
from graph_gemma.runners.infer import infer


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with settings."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_settings(command: Any, name: str, *settings: str) -> CommandResult:
        return run_command(command, name, list(settings), capsys, monkeypatch)

    return run_settings


def test_the_demo_without_any_setting(run: Any) -> None:
    done = run(activations, "activations", "calibration.samples=4")
    assert done.status == 0, done.stderr
    assert "Largest values by layer, 4 texts of" in done.stdout
    assert "input of mlp.down_proj" in done.stdout
    assert "times below float16's largest number" in done.stdout
    assert "passes.scale_residual" not in done.stdout  # nothing of a Gemma 1 is scaled


def test_a_page_has_table_plot_and_verdict(run: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run(activations, "activations", "calibration.samples=4", f"page={page}").status == 0
    text = page.read_text()
    assert text.count("<tr>") == 1 + 4
    assert text.count("<rect ") == 2 * 4
    assert "The residual stream reaches" in text
    again = run(activations, "activations", "calibration.samples=4", f"page={page}")
    assert again.status == 2
    assert "exists already" in again.stderr


def test_shapes_without_a_checkpoint_are_refused(run: Any) -> None:
    assert "model.path is not set" in run(activations, "activations", "model=gemma3_1b").stderr
    assert "exponent is 11; it must be" in run(activations, "activations", "exponent=11").stderr


@pytest.mark.parametrize("name", LATER_CONFIGS)
def test_what_it_recommends_runs_in_float16(name: str, run: Any, tmp_path: Path) -> None:
    """A stream of half a million: beyond float16 even when it is divided by 4."""
    model = make_model(LATER_CONFIGS[name])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.post_feedforward_layernorm.weight.fill_(60_000.0)
        model.model.layers[-1].mlp.down_proj.weight[1:] = 0.0  # the norm makes one number large of all
        model.to(torch.float16).save_pretrained(tmp_path / "model")
    make_tokenizer(tmp_path / "model", size=256)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(["One day", "Some other text", "and more"]))
    given = (f"model.path={tmp_path / 'model'}", f"calibration.file={texts}")
    said = run(activations, "activations", *given, "exponent=2").stdout
    assert "warning: the residual stream overflows in float16" in said
    recommended = next(word for word in said.split() if word.startswith("passes.scale_residual.exponent=")).rstrip(",")
    exponent = recommended.partition("=")[2]
    assert "warning" not in run(activations, "activations", *given, f"exponent={exponent}").stdout
    ask = (f"model.path={tmp_path / 'model'}", "backend=eager", "dtype=float16", "prompts=['One day']")
    ask = (*ask, "max_new_tokens=3", f"cache_dir={tmp_path / 'cache'}")
    failed = run(infer, "infer", *ask, "passes.scale_residual.exponent=2")
    assert failed.status == 1
    assert "not finite" in failed.stderr
    done = run(infer, "infer", *ask, recommended, "check=true")
    assert done.status == 0, done.stderr
    assert "check: scale_residual (tolerant) holds on 4 graphs" in done.stdout
    assert "4 of them compared in float32, as float16 overflows there" in done.stdout
    assert "tokens equal the plain model's" in done.stdout
