"""A result never replaces what the run reads, and another file only with overwrite=true."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.io.files import output_file

Settings = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "model/weights.bin", "p.jsonl", "template.jinja", "dumped.pbtxt", "other"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "model" / "config.json")
    os.link(tmp_path / "p.jsonl", tmp_path / "second_name")

    def make(name: str, path: Path, *more: str, command: str = "infer") -> Any:
        inputs = [f"model.path={tmp_path / 'model'}", f"prompts_file={tmp_path / 'p.jsonl'}"]
        return compose(command, [*inputs, f"chat_template={tmp_path / 'template.jinja'}", f"{name}={path}", *more])

    return make


@pytest.mark.parametrize("overwrite", ["overwrite=true", "overwrite=false"])
@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("p.jsonl", "prompts_file"),
        ("second_name", "prompts_file"),
        ("model/config.json", "model.path"),
        ("model/../model/weights.bin", "model.path"),
        ("link", "model.path"),
        ("template.jinja", "chat_template"),
    ],
)
def test_an_input_is_never_replaced(
    file: str, setting: str, overwrite: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"output_file: .* is what this run reads \\({setting}\\)"):
        output_file(settings("output_file", tmp_path / file, overwrite), "output_file")


@pytest.mark.parametrize(
    ("command", "name"), [("infer", "output_file"), ("inspect_graph", "page"), ("inspect_graph", "picture")]
)
def test_existing_results_stay_unless_overwrite_is_set(
    command: str, name: str, settings: Settings, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    with pytest.raises(UserError, match=f"{name}: .*other exists already. .*overwrite=true"):
        output_file(settings(name, other, command=command), name)
    assert output_file(settings(name, other, "overwrite=true", command=command), name) == other
    assert other.read_text() == "other"


def test_dumped_graph_is_not_replaced_by_its_page(settings: Settings, tmp_path: Path) -> None:
    dumped = tmp_path / "dumped.pbtxt"
    given = settings("page", dumped, f"graph={dumped}", "overwrite=true", command="inspect_graph")
    with pytest.raises(UserError, match=r"page: .* is what this run reads \(graph\)"):
        output_file(given, "page")


def test_devices_need_no_overwrite(settings: Settings) -> None:
    assert output_file(settings("output_file", Path("/dev/null")), "output_file") == Path("/dev/null")


def test_earlier_answers_beside_a_model_are_replaced(settings: Settings, tmp_path: Path) -> None:
    answers = tmp_path / "model" / "answers.jsonl"
    answers.write_text("{}\n")
    assert output_file(settings("output_file", answers, "overwrite=true"), "output_file") == answers
