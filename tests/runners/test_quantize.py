"""python runners/quantize.py and quant= of infer.py, as users call them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.cli import run_command

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import NoMemoryError, UserError
from graph_gemma.graph_model.quantizer.layers import KEPT_TOKENS
from graph_gemma.runners import demo
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.demo.world import demo_prompts
from graph_gemma.runners.infer import infer
from graph_gemma.runners.io.calibration import calibration_sequences, read_texts
from graph_gemma.runners.quantize import quantize


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no items"),
        ('{"prompt": "a"}\nnope\n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n\n{"txt": "b"}\n', "line 3 has none of prompt, .* nor passage and question"),
        ('{"prompt": 5}', "line 1 has none"),
        ("[1]", "line 1 has none"),
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


def test_calibration_files_of_mindie_and_modelslim_are_read(tmp_path: Path) -> None:
    items = [{"id": 0, "inputs_pretokenized": "A -- B\u2028C"}, {"inputs_pretokenized": "D", "label": 2}, {"text": "E"}]
    lines = tmp_path / "boolq.jsonl"
    lines.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in items), encoding="utf-8")
    assert read_texts(lines) == ["A -- B\u2028C", "D", "E"]
    whole = tmp_path / "anti_prompt.json"
    whole.write_text(json.dumps(["A", {"prompt": "B"}]))
    assert read_texts(whole) == ["A", "B"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "holds no list"), ("[]", "holds no list"), ("[", "as JSON"), ("[1]", "item 1 has none")],
)
def test_bad_lists_of_texts_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(path)


def test_a_calibration_text_without_a_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = compose("quantize", [f"calibration.file={tmp_path}/t.jsonl", f"output_dir={tmp_path}/out"])
    (tmp_path / "t.jsonl").write_text('{"prompt": "One day"}')
    config = replace(read_config(demo.CHECKPOINT_DIR), vocab_size=10)
    with pytest.raises(UserError, match=r"text 1 has the token id \d+, but the model's embedding ends at 9"):
        calibration_sequences(settings.calibration, demo.CHECKPOINT_DIR, config)


def test_more_texts_than_memory_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of all are kept; the number that fits is named, and is taken."""
    config = read_config(demo.CHECKPOINT_DIR)

    def sequences(samples: int) -> list[list[int]]:
        settings = compose("quantize", [f"output_dir={tmp_path}/out", f"calibration.samples={samples}"])
        return calibration_sequences(settings.calibration, demo.CHECKPOINT_DIR, config)

    monkeypatch.setattr("graph_gemma.runners.io.calibration.free_memory", lambda device: 1000 * config.hidden_size * 4)
    with pytest.raises(
        NoMemoryError, match=r"calibration.samples is 64: .* Give at most calibration.samples=\d+\.$"
    ) as no:
        sequences(64)
    largest = int(re.findall(r"\d+", str(no.value))[-1])
    assert 500 < sum(map(len, sequences(largest))) <= 1000
    with pytest.raises(NoMemoryError):
        sequences(largest + 1)


def test_no_more_texts_than_tokens_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"calibration.samples is .* at most {KEPT_TOKENS}"):
        compose("quantize", [f"output_dir={tmp_path}/out", f"calibration.samples={2**63 - 1}"])


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_links_out_of_the_checkpoint_are_not_copied(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    source = Path(shutil.copytree(demo.CHECKPOINT_DIR, tmp_path / "model"))
    secret.write_bytes((source / "config.json").read_bytes())
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(secret)
    with pytest.raises(UserError, match=rf"{name} is a link to .*secret, outside the checkpoint's directory"):
        quantize(compose("quantize", [f"model.path={source}", f"output_dir={tmp_path}/out", "quant=w8a16"]))
    assert not (tmp_path / "out").exists()


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(demo.CHECKPOINT_DIR.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    quantize(compose("quantize", [f"model.path={snapshot}", f"output_dir={tmp_path}/out", "quant=w8a16"]))
    copied = tmp_path / "out" / "tokenizer.json"
    assert copied.read_bytes() == (demo.CHECKPOINT_DIR / "tokenizer.json").read_bytes()
    assert not copied.is_symlink()


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
    assert "give quant.kv8=true (or quant=kv8) to graph-gemma infer" in text
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
    assert "The residual stream reaches" in done.stdout
    # A row for each linear and for each layer, under the heads of two tables.
    assert (target / "quantization.html").read_text().count("<tr>") == (1 + 6 * 4) + (1 + 4)
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
    assert "graph-gemma quantize" in refused.stderr
    other = run(infer, "infer", *settings, f"model.path={target}", "quant=w8a16")
    assert "the checkpoint is quantized already, as w8a8" in other.stderr
