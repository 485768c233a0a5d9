"""Files and directories appear whole or not at all, whenever the writer is killed."""

import shutil
import stat
import warnings
from pathlib import Path

import pytest
import torch
from support.kills import kill_at_each_call

from graph_gemma.graph_model import whole_files
from graph_gemma.graph_model.checkpoint.writer import save_checkpoint
from graph_gemma.graph_model.whole_files import (
    publish_directory,
    remove_leftovers,
    replace_files,
    staging_directory,
    write_file,
)


def content(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def visible(directory: Path) -> dict[str, str]:
    return {name: text for name, text in content(directory).items() if not name.startswith(".")}


def reset(directory: Path, files: dict[str, str]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    fill(directory, files)


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def test_a_file_is_old_or_new_at_every_kill(tmp_path: Path) -> None:
    root = tmp_path / "root"
    seen = set()

    def check(n: int) -> None:
        seen.add((root / "f").read_text())
        write_file(root / "other", "x")
        assert set(content(root)) == {"f", "other"}, "the next run removes leftovers"

    assert kill_at_each_call(lambda: write_file(root / "f", "new"), lambda: reset(root, {"f": "old"}), check) > 5
    assert seen == {"old", "new"}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_directory_is_old_or_new_at_every_kill(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    old, new = {"d/a": "old", "d/b": "old"}, {"d/a": "new", "d/c": "new"}
    if not exchanges:
        monkeypatch.setattr(whole_files, "_exchange", lambda a, b: False)

    def replace() -> None:
        with staging_directory(root) as staging:
            fill(staging, new)
            publish_directory(staging / "d", root / "d")

    restored = 0

    def check(n: int) -> None:
        nonlocal restored
        if exchanges:
            assert visible(root) in (old, new), f"killed at call {n}"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            remove_leftovers(root)
        restored += len(told)
        assert content(root) in (old, new), f"killed at call {n}"
        assert not list(root.glob(".*"))

    assert kill_at_each_call(replace, lambda: reset(root, old), check) > 10
    assert (restored > 0) == (not exchanges), "where two renames are needed, the next run restores and says so"


def test_a_set_of_files_is_old_or_new_at_every_kill(tmp_path: Path) -> None:
    root = tmp_path / "root"
    old = {"index": "1", "shard-1": "old", "mine": "m"}
    new = {"index": "2", "shard-2": "new", "mine": "m"}

    def replace() -> None:
        with staging_directory(root) as staging:
            fill(staging, {"index": "2", "shard-2": "new"})
            replace_files([staging / "shard-2", staging / "index"], [root / "shard-1"], root)

    def check(n: int) -> None:
        found = visible(root)
        wanted = old if found["index"] == "1" else new
        assert wanted.items() <= found.items(), f"killed at call {n}"
        remove_leftovers(root)
        assert content(root) == wanted

    assert kill_at_each_call(replace, lambda: reset(root, old), check) > 10


def test_a_checkpoint_is_old_or_new_at_every_kill(tmp_path: Path) -> None:
    root = tmp_path / "root"

    def save(value: float) -> None:
        save_checkpoint(root / "c", {"x": torch.full((2,), value)}, {"value": value}, overwrite=True)

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        save(1)

    seen = set()

    def check(n: int) -> None:
        names = {path.name for path in (root / "c").iterdir()}
        assert names == {"model.safetensors", "config.json", "graph_gemma_files.json"}, f"killed at call {n}"
        seen.add((root / "c" / "config.json").read_text())

    assert kill_at_each_call(lambda: save(2), prepare, check) > 20
    assert len(seen) == 2
    save(3)
    assert [path.name for path in root.iterdir()] == ["c"]


def test_what_a_running_writer_needs_is_no_leftover(tmp_path: Path) -> None:
    with staging_directory(tmp_path) as first:
        (first / "part").write_text("x")
        with staging_directory(tmp_path) as second:
            assert first != second
        remove_leftovers(tmp_path)
        assert (first / "part").exists()
    assert not any(tmp_path.iterdir())


def test_a_strangers_leftover_changes_nothing_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path, {"precious": "p", "sub/.graph-gemma-x/moves.json": '{"new": ["a"], "obsolete": ["../precious"]}'})
    (tmp_path / "sub" / ".graph-gemma-link").symlink_to(tmp_path)
    remove_leftovers(tmp_path / "sub")
    assert (tmp_path / "precious").read_text() == "p"


def test_the_mode_of_a_file_is_the_umask_s(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)
