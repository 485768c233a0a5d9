"""The cache directory: for its owner alone, checked with all below it, limited in size."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.cache import FileStore, private_directory, prune

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another user")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o000])
def test_it_is_made_for_its_owner_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        root = private_directory(tmp_path / "new" / "cache")
    finally:
        os.umask(before)
    assert root.stat().st_mode & 0o777 == 0o700


def give_away(path: Path) -> None:
    os.chown(path, 12345, 12345, follow_symlinks=False)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


@pytest.mark.parametrize("place", ["files/deep/a.so", "files/deep", "files"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.chmod(path.stat().st_mode | 0o020), "is writable by others"),
        (replace_by_link, "is a link"),
        pytest.param(give_away, "belongs to user 12345", marks=AS_ROOT),
    ],
)
def test_whatever_others_can_write_is_refused_with_its_path(
    spoil: Callable[[Path], object], message: str, place: str, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    (root / "files" / "deep").mkdir(parents=True)
    (root / "files" / "deep" / "a.so").touch()
    root.chmod(0o755)
    spoil(root / place)
    with pytest.raises(UserError, match=rf"cache_dir: {re.escape(str(root / place))} {message}"):
        private_directory(root)


def test_a_directory_of_the_user_alone_guards_what_is_in_it(tmp_path: Path) -> None:
    """Compilers write with the umask's mode, which lets the group write for many users."""
    root = tmp_path / "cache"
    root.mkdir(mode=0o700)
    (root / "a.so").touch()
    (root / "a.so").chmod(0o664)
    assert private_directory(root) == root


def test_a_root_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(UserError, match="is writable by others"):
        private_directory(tmp_path / "cache")


def test_prune_removes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for index, name in enumerate(("steps/new", "files/old", "files/middle")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (0, (3, 1, 2)[index]))
    store = FileStore(tmp_path)
    (store.workspace / "working").write_bytes(bytes(1000))

    assert prune(tmp_path, 250) == (1, 100)
    assert not (tmp_path / "files/old").exists()
    assert prune(tmp_path, 250) == (0, 0)
    assert prune(tmp_path, 0) == (2, 200)
    assert (store.workspace / "working").exists(), "what a process works with stays"
