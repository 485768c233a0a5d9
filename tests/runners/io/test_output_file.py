"""output_file: whole lines or a message. A file that cannot take the lines, and a request that fails, are told."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS
from support.tokenizers import make_tokenizer

import graph_gemma.runners.engine.engine as engine
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.engine.result import RequestResult
from graph_gemma.runners.infer import infer
from graph_gemma.runners.io.files import output_file
from graph_gemma.runners.io.output import OutputFile

Run = Callable[..., CommandResult]
ONE, THREE = "prompts=[a]", "prompts=[a,b,c]"
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(directory, TINY_CONFIGS["untied_head"])
    make_tokenizer(directory)
    return directory


@pytest.fixture
def run(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [f"model.path={checkpoint}", "backend=eager", "max_new_tokens=3", f"cache_dir={tmp_path / 'cache'}"]
        return run_command(infer, "infer", [*settings, *arguments], capsys, monkeypatch)

    return call


@FULL
@pytest.mark.parametrize("prompts", [ONE, THREE])
def test_a_full_disk_is_told_after_the_answers(prompts: str, run: Run) -> None:
    result = run(prompts, "output_file=/dev/full")
    assert result.status == 2
    assert "error: output_file: /dev/full" in result.stderr
    assert os.strerror(errno.ENOSPC) in result.stderr
    assert "Traceback" not in result.stderr
    assert "peak memory:" in result.stdout, "the answers and the report are there"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("prompts", [ONE, THREE])
def test_a_file_that_cannot_be_created_is_refused_early(prompts: str, run: Run) -> None:
    result = run(prompts, "output_file=/proc/out.jsonl")
    assert result.status == 2
    assert "error: output_file: /proc/out.jsonl cannot be written" in result.stderr
    assert result.stdout == ""


def test_a_directory_is_refused(run: Run, tmp_path: Path) -> None:
    result = run(ONE, f"output_file={tmp_path}")
    assert result.status == 2
    assert f"output_file: {tmp_path} is a directory" in result.stderr


@pytest.mark.parametrize(("prompts", "failed"), [(ONE, 0), (THREE, 1)])
def test_a_failed_request_is_named_and_the_others_are_written(
    prompts: str, failed: int, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_decode = engine.make_decode
    calls = 0

    def make_failing(tokenizer: Any) -> Callable[[list[int]], str]:
        decode = make_decode(tokenizer)

        def failing(token_ids: list[int]) -> str:
            nonlocal calls
            calls += 1
            if calls == failed + 1:  # the first tokens come in the order of the prompts
                raise ValueError("no such token")
            return decode(token_ids)

        return failing

    monkeypatch.setattr(engine, "make_decode", make_failing)
    output = tmp_path / "out.jsonl"
    result = run(prompts, f"output_file={output}", "ignore_eos=true")
    assert result.status == 1
    assert f"error: the request of prompt {failed} failed: ValueError: no such token" in result.stderr
    assert result.stderr.count("failed:") == 1
    assert "Traceback" not in result.stderr
    assert "peak memory:" in result.stdout
    written = [json.loads(line)["index"] for line in output.read_text().splitlines()] if output.exists() else []
    count = 1 if prompts == ONE else 3
    assert sorted(written) == [index for index in range(count) if index != failed]


def request_result(text: str) -> RequestResult:
    return RequestResult(0, [5], [6], text, "length", seed=0)


def test_only_whole_lines_are_left_where_the_disk_is_full(tmp_path: Path) -> None:
    """A limit on the file's size: the system writes a part of a line, then refuses the rest."""
    path = tmp_path / "out.jsonl"
    with OutputFile(path) as output:
        output.write(0, "a", request_result("short"), "eager on cpu")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limits[1]))
        try:
            output.write(1, "b", request_result("long" * 100), "eager on cpu")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        output.write(2, "c", request_result("after"), "eager on cpu")
        with pytest.raises(UserError, match=r"output_file: .*out\.jsonl.* 1 of 3 "):
            output.check()
    text = path.read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["index"] for line in text.splitlines()] == [0]


def test_a_line_that_is_taken_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    with OutputFile(path) as output:
        output.write(0, "a", request_result("text"), "eager on cpu")
        output.check()
    monkeypatch.undo()
    assert json.loads(path.read_text())["text"] == "text"


def test_an_interruption_within_a_line_leaves_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    write = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:7])
        raise KeyboardInterrupt

    with OutputFile(path) as output:
        output.write(0, "a", request_result("text"), "eager on cpu")
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            output.write(1, "b", request_result("more"), "eager on cpu")
    monkeypatch.undo()
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0]


def test_what_was_there_stays_until_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before\n")
    with OutputFile(path) as output:
        assert path.read_text() == "before\n"
        output.write(0, "a", request_result("text"), "eager on cpu")
    assert "before" not in path.read_text()
    new = output_file(compose("infer", [f"output_file={tmp_path / 'new.jsonl'}"]), "output_file")
    with OutputFile(new):
        pass
    assert not (tmp_path / "new.jsonl").exists(), "asking whether it can be written leaves nothing"
