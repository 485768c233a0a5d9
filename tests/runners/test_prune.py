"""runners/prune.py: the cache made smaller, or empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import run_command

from graph_gemma.runners.prune import prune as prune_command


def test_it_empties_the_cache_or_reduces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "files").mkdir(parents=True, mode=0o700)
    for name in ("a", "b"):
        (cache / "files" / name).write_bytes(bytes(1_000_000))

    def prune(*settings: str) -> tuple[int, str]:
        result = run_command(prune_command, "prune", [f"cache_dir={cache}", *settings], capsys, monkeypatch)
        return result.status, result.stdout + result.stderr

    assert prune("cache_limit_gb=0.0015") == (0, f"{cache}: removed 1 files, 1.0 MB\n")
    assert prune() == (0, f"{cache}: removed 1 files, 1.0 MB\n")
    assert not list((cache / "files").iterdir())
    status, printed = prune("cache_limit_gb=-1")
    assert status == 2
    assert "cache_limit_gb is -1; it must be a number of gigabytes" in printed


def test_without_a_cache_there_is_nothing_to_remove(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_command(prune_command, "prune", [f"cache_dir={tmp_path / 'none'}"], capsys, monkeypatch)
    assert (result.status, result.stdout) == (0, f"{tmp_path / 'none'}: nothing to remove\n")
    assert not (tmp_path / "none").exists()
