"""evaluate.py, the harness's own command line on our model, and its model of transformers agree in every sample.

Everything in float32 on the demo's held-out items, with the demo, which answers all of them rightly, and with a random
model, which does not.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT, import_path
from support.checkpoints import make_checkpoint
from support.cli import run_command
from support.configs import TINY_CONFIGS
from support.tokenizers import make_tokenizer

from graph_gemma.runners import demo
from graph_gemma.runners.evaluate import evaluate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("lm_eval", "accelerate")),
        reason="the extra evaluate is missing",
    ),
]
COUNT = 30
Sample = tuple[float, float, float]  # log-probabilities of no and of yes, and whether the answer is right


def checkpoint(name: str, directory: Path) -> Path:
    if name == "demo":
        return demo.CHECKPOINT_DIR
    config = TINY_CONFIGS["grouped_kv_heads"]
    make_checkpoint(directory, config)
    make_tokenizer(directory, size=config.vocab_size)
    return directory


def harness(tmp_path: Path, model: str, arguments: str) -> tuple[list[Sample], dict[str, object]]:
    """Samples and results file of lm-evaluation-harness's command line."""
    out = tmp_path / model
    command = [sys.executable, str(ROOT / "runners" / "lm_eval_cli.py"), "run", "--model", model, "--device", "cpu"]
    command += ["--model_args", arguments, "--tasks", "demo_comprehension", "--limit", str(COUNT)]
    environment = {**os.environ, "PYTHONPATH": import_path(ROOT, os.environ.get("PYTHONPATH", ""))}
    done = subprocess.run(
        [*command, "--log_samples", "--output_path", str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (samples,) = out.rglob("samples_demo_comprehension_*.jsonl")
    (results,) = out.rglob("results_*.json")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    no_yes = [[float(response[0][0]) for response in row["resps"]] for row in rows]
    return [(no, yes, row["acc"]) for (no, yes), row in zip(no_yes, rows, strict=True)], json.loads(results.read_text())


def assert_equal(found: list[Sample], expected: list[Sample]) -> None:
    assert len(found) == len(expected) == COUNT
    for (no, yes, right), (no_expected, yes_expected, right_expected) in zip(found, expected, strict=True):
        assert (no, yes) == pytest.approx((no_expected, yes_expected), abs=1e-3)
        assert (no < yes, right) == (no_expected < yes_expected, right_expected)


@pytest.mark.parametrize("name", ["demo", "random"])
def test_every_sample(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(name, tmp_path / "checkpoint")
    settings = {"model.path": path, "dtype": "float32", "backend": "eager", "max_seq_len": 512}
    theirs, _ = harness(tmp_path, "hf", f"pretrained={path},dtype=float32")
    ours, written = harness(tmp_path, "graph_gemma", ",".join(f"{key}={value}" for key, value in settings.items()))
    assert_equal(ours, theirs)
    assert {no < yes for no, yes, _ in theirs} == {False, True} or name == "random"
    assert {right for _, _, right in theirs} == ({1.0} if name == "demo" else {0.0, 1.0})

    # The items in evaluate.py's own form, and as the harness's task.
    arguments = [f"{key}={value}" for key, value in settings.items()] + [f"limit={COUNT}"]
    for extra, stem in (([], "demo"), (["tasks=[demo_comprehension]"], "demo_comprehension")):
        directory = tmp_path / stem
        result = run_command(
            evaluate, "evaluate", [*arguments, *extra, f"results_dir={directory}"], capsys, monkeypatch
        )
        assert result.status == 0, result.stderr
        (samples,) = directory.glob(f"samples_{stem}_*.csv")
        with samples.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if extra:
            answers = [[float(pair[0]) for pair in json.loads(row["resps"])] for row in rows]
        else:
            answers = [[float(row["logprob_no"]), float(row["logprob_yes"])] for row in rows]
        assert_equal([(no, yes, float(row["acc"])) for (no, yes), row in zip(answers, rows, strict=True)], theirs)
        (results,) = directory.glob("results_*.json")
        found = json.loads(results.read_text())
        task = "demo_comprehension" if extra else "demo"
        mean = sum(right for *_, right in theirs) / COUNT
        assert found["results"][task]["acc,none"] == pytest.approx(mean)
        expected = written["results"]["demo_comprehension"]  # type: ignore[index]
        assert found["results"][task]["acc_stderr,none"] == pytest.approx(expected["acc_stderr,none"])
        assert set(expected) - set(found["results"][task]) <= {"name"}
        if extra:
            about_the_chat = {name for name in written if "chat" in name or "system" in name or "fewshot" in name}
            assert set(written) - about_the_chat - {"start_time", "end_time"} <= set(found)
            assert set(written["config"]) <= set(found["config"])  # type: ignore[call-overload]
