"""Make and check the cache directory, which only its owner may write to, and limit its size."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.whole_files import is_staging, remove_leftovers


@cache
def private_directory(root: Path) -> Path:
    """Make the cache directory `root` if it is not there, with mode 0700; check it, once in a process.

    Whatever lies below it must belong to this user or to root, be no link, and be writable by nobody else; a directory
    that nobody else can enter guards what is in it. Raises UserError naming the path at fault.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root = root.resolve()
        found = [(root, root.lstat()), *_below(root)]
    except OSError as error:
        raise UserError(
            f"cache_dir: {error.filename or root} cannot be used ({error.strerror}). Name a directory that you can "
            "write to."
        ) from None
    closed = not found[0][1].st_mode & 0o011
    for path, status in found:
        if status.st_uid not in (os.getuid(), 0):
            _refuse(root, path, f"belongs to user {status.st_uid}")
        if stat.S_ISLNK(status.st_mode):
            _refuse(root, path, "is a link")
        if status.st_mode & 0o022 and (path == root or not closed):
            _refuse(root, path, "is writable by others")
    return root


def _refuse(root: Path, path: Path, what: str) -> None:
    raise UserError(
        f"cache_dir: {path} {what}. Compiled code is loaded from this directory, so only you may write to it, and to "
        f"all that is in it. Name another directory, or make sure of its content and run: chmod -R go-w {root}"
    )


def _below(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All paths below it; what another process removes meanwhile is left out."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield Path(entry.path), status
                if stat.S_ISDIR(status.st_mode):
                    yield from _below(Path(entry.path))


def prune(root: Path, limit: float) -> tuple[int, int]:
    """Remove the files that were not used for longest until those below `root` have at most `limit` bytes.

    Returns the number of files removed and their bytes. Files that running processes work with do not count and stay;
    a file that is missed is made again.
    """
    remove_leftovers(root)
    files = []
    for path, status in _below(root):
        if stat.S_ISREG(status.st_mode) and not any(map(is_staging, path.relative_to(root).parts)):
            files.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in files) - limit
    removed = total = 0
    for _, size, path in sorted(files):
        if excess <= total:
            break
        path.unlink(missing_ok=True)
        removed, total = removed + 1, total + size
    return removed, total
