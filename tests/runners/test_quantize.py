"""python runners/quantize.py and quant= of infer.py, as users call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli import run_command

from graph_model.errors import UserError
from runners.demo.world import demo_prompts
from runners.infer import infer
from runners.io.calibration import read_texts
from runners.quantize import quantize


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no items"),
        ('{"prompt": "a"}\nnope\n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', "line 3 has neither a prompt nor passage and question"),
        ('{"prompt": 5}', "line 1 has neither"),
        ("[1]", "line 1 has neither"),
    ],
)
def test_bad_calibration_files_are_refused_by_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_texts(tmp_path / "absent.jsonl")


def test_prompts_and_boolq_items_are_read(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [
        {"prompt": "Once upon"},
        {"title": "T", "passage": "P.", "question": "is it", "answer": True},
        {"passage": "P.", "question": "is it"},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    assert read_texts(path) == [
        "Once upon",
        "T -- P.\nQuestion: is it?\nAnswer: yes",
        "P.\nQuestion: is it?\nAnswer:",
    ]


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [(["quant=w8a8_dynamic", "quant.kv8=true"], "Leave it out here"), (["quant=kv8"], "Choose quant=w8a8, quant=")],
)
def test_an_int8_cache_is_no_matter_of_checkpoints(
    arguments: list[str],
    way_out: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    done = run_command(quantize, "quantize", [f"output_dir={tmp_path / 'q'}", *arguments], capsys, monkeypatch)
    assert done.status == 2
    text = " ".join(done.stderr.split())
    assert "quant.kv8 is true; keys and values are quantized when the model runs" in text
    assert way_out in text
    assert "give quant.kv8=true (or quant=kv8) to runners/infer.py" in text
    assert not (tmp_path / "q").exists()


def test_a_quantized_demo_answers_and_the_rest_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "quantized"

    def run(command: Any, name: str, *arguments: str) -> Any:
        return run_command(command, name, list(arguments), capsys, monkeypatch)

    done = run(quantize, "quantize", f"output_dir={target}", "calibration.samples=4")
    assert done.status == 0, done.stderr
    assert "layers.3.mlp.gate_proj" in done.stdout
    assert (target / "quantization.html").read_text().count("<tr>") == 1 + 6 * 4
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        assert f"layers.2.{'mlp' if name in ('gate_proj', 'up_proj') else 'self_attn'}.{name} " in done.stdout
    again = run(quantize, "quantize", f"output_dir={target}", "calibration.samples=4")
    assert (again.status, "exists already" in again.stderr) == (2, True)

    settings = ["backend=eager", f"cache_dir={tmp_path / 'cache'}", "max_seq_len=128", "max_new_tokens=12"]
    settings += [f"prompts={json.dumps(['One day Clara took a red kite to the meadow.', demo_prompts()[-1]])}"]
    answers = {}
    for name, arguments in {
        "float": [],
        "stored": [f"model.path={target}", "quant.kv8=true"],
        "weights": ["quant=w8a16"],
    }.items():
        found = run(infer, "infer", *settings, *arguments)
        assert found.status == 0, found.stderr
        story, _, rest = found.stdout.partition("A busy day")
        answers[name] = (story[:30], rest.split("backend:")[0])
    assert answers["float"][1].strip().endswith("Answer: yes")
    assert answers["stored"] == answers["weights"] == answers["float"]

    refused = run(infer, "infer", *settings, "quant=w8a8")
    assert refused.status == 2
    assert "quant=w8a8 needs scales of the activations" in refused.stderr
    assert "python runners/quantize.py" in refused.stderr
    other = run(infer, "infer", *settings, f"model.path={target}", "quant=w8a16")
    assert "the checkpoint is quantized already, as w8a8" in other.stderr
