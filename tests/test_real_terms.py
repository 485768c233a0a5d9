"""The opt-in command on real material does nothing before its terms are accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.real", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_nothing_is_fetched_without_accepting_the_terms(tmp_path: Path) -> None:
    for given in ((), ("accept_terms=yes",), ("accept_terms=",)):
        found = run(f"folder={tmp_path / 'material'}", "parts=[tokenizer]", *given)
        assert found.returncode == 2
        assert "Gemma Terms of Use" in found.stdout
        assert "Nothing was done" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    found = run("accept_terms=true", f"folder={tmp_path / 'material'}", "parts=[boolk]")
    assert found.returncode == 2
    assert "there is no 'boolk'" in found.stdout
    assert list(tmp_path.iterdir()) == []
