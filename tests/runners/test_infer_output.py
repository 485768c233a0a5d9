"""What runners/infer.py writes, to the terminal and to output_file, on the demo model."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cli import CommandResult, run_command

from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.infer import infer

Run = Callable[..., CommandResult]
KIND = "One day Clara took a red kite to the meadow."
FIGURES = r"""
backend:             eager on cpu
dtype:               bfloat16 \(config.json\)
answers end at:      1 5 \(config.json\)
steps:               (\d+) compiled, 0 from the cache, in \d+\.\d s
time to first token: \d+\.\d ms
prefill:             (\d+) tokens, \d+\.\d tokens/s
decode:              (\d+) tokens, \d+\.\d tokens/s
KV cache:            (\d+) of (\d+) blocks used, 0 preemptions
                     \d+\.\d kB per token, \d+\.\d MB per sequence of 256
peak memory:         \d+ MB \(weights \d+ MB\)
$"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def call(*arguments: str) -> CommandResult:
        small = ["max_batch_size=1", "max_prefill_batch_size=1", "max_seq_len=256"]
        result = run_command(
            infer, "infer", ["backend=eager", f"cache_dir={tmp_path}", *small, *arguments], capsys, monkeypatch
        )
        assert result.status == 0, result.stderr
        return result

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda line: line["index"])


def test_one_prompt_streams(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pieces: list[str] = []

    def recorded(*values: object, **options: Any) -> None:
        if options.get("flush"):
            pieces.append(str(values[0]))
        builtins.print(*values, **options)

    monkeypatch.setattr("graph_gemma.runners.llm.answer.print", recorded, raising=False)
    output = tmp_path / "out.jsonl"
    result = run(f'prompts=["{KIND}"]', "max_new_tokens=12", f"output_file={output}", "overwrite=true")
    (line,) = lines(output)
    assert result.stdout.startswith(f"\n{KIND}{line['text']}\n\nbackend:")
    assert pieces[0] == f"\n{KIND}"
    assert len(pieces) == 1 + len(line["token_ids"]) == 13, "a piece per token, written at once"
    assert "".join(pieces[1:]) == line["text"]
    assert "prompt/s" not in result.stderr, "no progress bar"


def test_many_prompts_show_progress_and_every_request_is_a_line(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    prompts = [KIND, "Early in the morning Sam", "One morning Oscar and Ivy walked to the forest."]
    result = run(
        f"prompts={json.dumps(prompts)}", "max_new_tokens=20", "stop=['.']", f"output_file={output}", "overwrite=true"
    )
    answers = lines(output)
    assert [answer["prompt"] for answer in answers] == prompts
    types = {
        "index": int,
        "prompt": str,
        "prompt_token_ids": list,
        "text": str,
        "token_ids": list,
        "finish_reason": str,
        "ttft_s": float,
        "decode_tokens_per_s": float,
        "backend": str,
    }
    for answer in answers:
        assert {name: type(value) for name, value in answer.items()} == types
        assert all(type(token) is int for token in answer["prompt_token_ids"] + answer["token_ids"])
        assert answer["backend"] == "eager on cpu"
        assert "." not in answer["text"]
        assert answer["finish_reason"] == ("stop" if len(answer["token_ids"]) < 20 else "length")
        assert f"\n{answer['prompt']}{answer['text']}\n" in result.stdout
    assert any(answer["finish_reason"] == "stop" for answer in answers)
    assert re.search(r"3/3 .*prefill \d+ tokens/s, decode \d+ tokens/s", result.stderr)

    figures = re.search(FIGURES, result.stdout)
    assert figures, result.stdout
    steps, prefill, decode, used, blocks = map(int, figures.groups())
    assert steps == 2
    assert prefill == sum(len(answer["prompt_token_ids"]) for answer in answers)
    assert decode == sum(len(answer["token_ids"]) - 1 for answer in answers), "the first tokens are prefill's"
    assert used == 2, "one prompt is computed ahead of the one that decodes"
    assert blocks == 4, "one sequence of max_seq_len"


def test_prompts_of_a_file_as_chats(run: Run, tmp_path: Path) -> None:
    file, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    messages = [{"role": "user", "content": "Tell"}, {"role": "model", "content": "What?"}]
    file.write_text('{"prompt": "About Sam."}\n' + json.dumps({"messages": messages}) + "\n")
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    arguments = ["max_new_tokens=2", f"prompts_file={file}", f"output_file={output}", "overwrite=true", "chat=true"]
    run(*arguments)
    own = lines(output)
    assert all("<start_of_turn>" in answer["prompt"] or "user" in answer["prompt"] for answer in own)
    assert "About Sam." in own[0]["prompt"]
    assert own[0]["prompt"] != "About Sam.", "the tokenizer's template is around it"

    (tmp_path / "template.jinja").write_text(template)
    run(*arguments, f"chat_template={tmp_path / 'template.jinja'}")
    given = lines(output)
    assert [answer["prompt"].partition("[")[2] for answer in given] == [
        "user] About Sam. ",
        "user] Tell [model] What? ",
    ]


@pytest.mark.parametrize(
    ("name", "field", "value", "shown"),
    [
        ("generation_config.json", "eos_token_id", [1, 5], "1 (config.json), 1 5 (generation_config.json)"),
        ("tokenizer_config.json", "eos_token", "<end_of_turn>", "1 (config.json), 5 (tokenizer_config.json)"),
    ],
)
def test_an_answer_ends_where_a_side_file_says(
    name: str, field: str, value: object, shown: str, run: Run, tmp_path: Path
) -> None:
    """A chat fine-tune whose config.json names <eos> alone."""
    folder, output = tmp_path / "model", tmp_path / "out.jsonl"
    shutil.copytree(CHECKPOINT_DIR, folder)
    for file, key, new in (("config.json", "eos_token_id", 1), (name, field, value)):
        raw = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        (folder / file).write_text(json.dumps({**raw, key: new}))
    result = run(f"model.path={folder}", f"output_file={output}", "chat=true", "prompts=['Tell me a story about Sam.']")
    (line,) = lines(output)
    assert (line["finish_reason"], line["token_ids"].index(5)) == ("stop", len(line["token_ids"]) - 1)
    assert f"answers end at:      {shown}\n" in result.stdout


def test_a_pass_that_is_switched_off_changes_no_token(run: Run, tmp_path: Path) -> None:
    file, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    file.write_text(f"{KIND}\nOne day Grace\n")
    arguments = [
        "max_new_tokens=24",
        f"prompts_file={file}",
        f"output_file={output}",
        "overwrite=true",
        "dtype=float32",
    ]
    found = []
    for further in (["check=true"], ["check=true", "passes.rotary.enabled=false"]):
        result = run(*arguments, *further)
        found.append([answer["token_ids"] for answer in lines(output)])
        assert ("check: rotary " in result.stdout) == (len(further) == 1)
    assert found[0] == found[1]
    assert [answer["prompt"] for answer in lines(output)] == [KIND, "One day Grace"]
