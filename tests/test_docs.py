"""Documentation: the files and functions that it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def definitions(path: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_and_functions_named_in_docs_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:graph_model|passes|runners|conf|tests)/[\w./]*)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name
    for file, name in re.findall(r"`((?:graph_model|passes|runners|tests)/[\w./]*\.py):([\w.]+)`", text):
        assert name in definitions(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pytest_commands_in_docs_select_tests(page: Path) -> None:
    for command in re.findall(r"`pytest ([^`]*)`", page.read_text(encoding="utf-8")):
        options, _, expression = command.partition(" -k ")
        words = expression.strip('"').split(" or ")
        places = [ROOT / part for part in options.split() if part.startswith("tests")]
        files = [file for place in places for file in (place.rglob("test_*.py") if place.is_dir() else [place])]
        names = [name for file in files for name in definitions(file) if name.startswith("test_")]
        for word in words if places else []:
            assert any(word in name for name in names), f"{command}: no test's name has {word!r}"


def test_the_walks_have_ten_stops_each() -> None:
    text = (ROOT / "docs" / "how-data-flows.md").read_text(encoding="utf-8")
    walks = text.split("\n## ")[1:]
    assert [len(re.findall(r"(?m)^\| \d+ \|.*`[\w/]+\.py:", walk)) for walk in walks] == [10, 10]
