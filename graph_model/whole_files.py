"""Atomic writes: files and directories appear whole or not at all, even if the process is killed or power is lost.

What is being written lies in a hidden directory ``.graph-gemma-*`` next to its place, which its writer keeps locked.
A later run finds such a directory unlocked if its writer was killed, and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_PREFIX = ".graph-gemma-"
_PREVIOUS = "previous"  # in a staging directory: what had to be moved away, under its own name
_MOVES = "moves.json"  # in a staging directory: what `replace_files` does
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


@contextlib.contextmanager
def staging_directory(parent: Path) -> Iterator[Path]:
    """An empty hidden directory in `parent`, on the same file system; removed at the end with all that is left in it.

    Those that killed processes left in `parent` are removed first, see `remove_leftovers`.
    """
    remove_leftovers(parent)
    while True:
        staging = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(staging, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks, where nothing is removed either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if staging.exists():
                break
            os.close(descriptor)
        # Another process took it for left over before it was locked.
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def remove_leftovers(parent: Path) -> None:
    """Remove the staging directories that killed processes left in `parent`; data moved away in them is restored.

    Restoring is needed only where the file system cannot exchange two names. A warning says what was restored.
    """
    for staging in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it is none of ours, or cannot be removed
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # A stranger's may hold anything, where others may write, too.
                if os.fstat(descriptor).st_uid == os.getuid() and _lock(descriptor):
                    _restore(staging, parent)
                    shutil.rmtree(staging)
            finally:
                os.close(descriptor)


def is_staging(name: str) -> bool:
    """Whether `staging_directory` gives such names."""
    return name.startswith(_PREFIX)


def _restore(staging: Path, parent: Path) -> None:
    for previous in (staging / _PREVIOUS).glob("*"):
        if not os.path.lexists(parent / previous.name):
            os.rename(previous, parent / previous.name)
            warnings.warn(
                f"{parent / previous.name}: a run that was replacing it was killed; what was there before is back",
                stacklevel=2,
            )
    if (staging / _MOVES).is_file():
        with contextlib.suppress(ValueError):  # killed while it was written, and nothing was moved yet
            _finish(staging, parent)


def _lock(descriptor: int) -> bool:
    """Whether this process has the directory to itself; false too where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, or replace it; its mode is the umask's. Raises OSError with its name; then nothing has changed."""
    try:
        with staging_directory(path.parent) as staging:
            new = staging / path.name
            new.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(new)
            os.replace(new, path)
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def publish_directory(content: Path, target: Path) -> None:
    """Move the directory `content` from its staging directory to `target`, in place of the directory that is there.

    The old one is then where `content` was, to be removed with the staging directory.
    """
    for path in (content, *content.rglob("*")):
        sync(path)
    if not target.exists():
        os.rename(content, target)
    elif not _exchange(content, target):
        previous = content.parent / _PREVIOUS
        previous.mkdir()
        os.rename(target, previous / target.name)
        try:
            os.rename(content, target)
        except BaseException:
            os.rename(previous / target.name, target)
            raise
    sync(target.parent)


def replace_files(new: Sequence[Path], obsolete: Iterable[Path], directory: Path) -> list[Path]:
    """Move files from a staging directory to `directory`, then remove the `obsolete` ones there; returns their places.

    The last file is the one that readers go by: until it is in its place nothing that was there has changed. The
    names of the others must be free. A process that is killed leaves the rest to `remove_leftovers`.
    """
    staging, deciding = new[0].parent, new[-1]
    moves = {"new": [path.name for path in new], "obsolete": [path.name for path in obsolete]}
    (staging / _MOVES).write_text(json.dumps(moves), encoding="utf-8")
    for path in (*new, staging / _MOVES, staging):
        sync(path)
    try:
        for path in new[:-1]:
            os.rename(path, directory / path.name)
        sync(directory)
        os.replace(deciding, directory / deciding.name)
        sync(directory)
    finally:
        _finish(staging, directory)
    return [directory / path.name for path in new]


def _finish(staging: Path, directory: Path) -> None:
    """Remove what `replace_files` has made obsolete, or what it has moved if it did not come to the last file."""
    moves = json.loads((staging / _MOVES).read_text(encoding="utf-8"))
    *others, deciding = moves["new"]
    for name in others if (staging / deciding).exists() else moves["obsolete"]:
        if Path(name).name == name:
            (directory / name).unlink(missing_ok=True)
    sync(directory)


def sync(path: Path) -> None:
    """Bring a file's content, or a directory's names, to the disk, so that what follows is not there before it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):  # a file system that does not do this for directories
            raise
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; false where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))
