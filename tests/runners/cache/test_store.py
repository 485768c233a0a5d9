"""Compiled files on disk: used only with their digest, made again otherwise, loaded from a private place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graph_gemma.runners.cache import FileStore
from graph_gemma.runners.cache import store as store_module

# Builds kernels/NAME where it is not kept, and says which were there.
WORK = """
import os, signal, sys
from pathlib import Path
from graph_gemma.runners.cache import FileStore
store = FileStore(Path(sys.argv[1]))
store.fetch("kernels/")
folder = store.workspace / "kernels"
folder.mkdir(exist_ok=True)
print(store.workspace, *sorted(path.name for path in folder.iterdir()))
for name in ("a.so", "b.so"):
    if not (folder / name).exists():
        (folder / name).write_text("code " + name)
if "die" in sys.argv:
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
store.keep("kernels/")
"""


def work(root: Path, *arguments: str) -> tuple[Path, list[str]]:
    """The workspace of a process, and what it found there."""
    command = [sys.executable, "-c", WORK, str(root), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check="die" not in arguments)
    workspace, *found = result.stdout.split()
    return Path(workspace), found


def stored(root: Path) -> dict[str, Path]:
    return {path.name.partition("-")[2]: path for path in (root / "files").glob("*")}


def test_what_one_process_kept_the_next_one_finds(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    assert work(root)[1] == []
    workspace, found = work(root)
    assert found == ["a.so", "b.so"]
    assert workspace.parent == root, "nothing that is executed lies outside"
    assert not workspace.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"code", b"evil")),
    ],
)
def test_a_damaged_file_is_made_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    root = tmp_path / "cache"
    work(root)
    damage(stored(root)["kernels%2Fa.so"])
    assert work(root)[1] == ["b.so"]
    assert work(root)[1] == ["a.so", "b.so"]


def test_what_a_killed_process_half_built_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    workspace, _ = work(root, "die")
    assert workspace.is_dir()
    assert work(root)[1] == []
    assert [path.name for path in root.iterdir()] == ["files"]


def test_a_name_that_leads_out_of_the_workspace_is_ignored(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    work(root)
    path = stored(root)["kernels%2Fa.so"]
    digest = path.name.partition("-")[0]
    path.rename(path.with_name(f"{digest}-kernels%2F..%2F..%2F..%2Fout.so"))
    assert work(root)[1] == ["b.so"]
    assert not (tmp_path / "out.so").exists()


def test_a_cache_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only file system, where no directory can be made."""
    root = tmp_path / "cache"
    work(root)
    staging = store_module.staging_directory

    def refuse(parent: Path) -> object:
        if parent == root:
            raise OSError(30, "Read-only file system")
        return staging(parent)

    monkeypatch.setattr(store_module, "staging_directory", refuse)
    store = FileStore(root)
    store.fetch("kernels/")
    assert sorted(path.name for path in (store.workspace / "kernels").iterdir()) == ["a.so", "b.so"]
    assert store.workspace.stat().st_mode & 0o777 == 0o700
    store.keep("kernels/")  # nothing is new
