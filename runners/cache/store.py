"""FileStore: compiled files on disk by their digests, and the process's own directory that they are loaded from."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.whole_files import staging_directory, write_file
from graph_gemma.runners.cache.directory import private_directory


class FileStore:
    """Files in the cache directory `root`, each named by its content's digest and its path in the `workspace`.

    workspace: a directory of this process alone, where files are compiled and loaded. It lies in `root`, or, where that
    is read-only, in the system's directory for temporary files. Only what has its digest comes into it, so a file that
    is damaged, or was half written when a process was killed, is as good as absent, and is made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = private_directory(root)
        self.workspace = _workspace(self.root)
        self._files = self.root / "files"
        self._known: set[str] = set()  # paths in the workspace that `root` holds

    def fetch(self, prefix: str) -> None:
        """Copy what is kept under paths that begin with `prefix` to the workspace; what is damaged is removed."""
        for stored in self._files.glob("*"):
            digest, _, quoted = stored.name.partition("-")
            path = unquote(quoted)
            if not path.startswith(prefix) or path in self._known or not _is_plain(path):
                continue
            try:
                content = stored.read_bytes()
            except OSError:  # another process has removed it
                continue
            if hashlib.sha256(content).hexdigest() != digest:
                with contextlib.suppress(OSError):
                    stored.unlink()
                continue
            mark_used(stored)
            self._known.add(path)
            target = self.workspace / path
            if not target.exists():
                _write_whole(target, content)

    def keep(self, prefix: str, wanted: Callable[[Path], bool] = lambda path: True) -> None:
        """Keep the workspace's files under paths that begin with `prefix`. Raises UserError if it cannot write."""
        for file in self.workspace.rglob("*"):
            path = file.relative_to(self.workspace)
            if not str(path).startswith(prefix) or str(path) in self._known or not file.is_file() or not wanted(path):
                continue
            content = file.read_bytes()
            name = f"{hashlib.sha256(content).hexdigest()}-{quote(str(path), safe='')}"
            try:
                self._files.mkdir(exist_ok=True, mode=0o700)
                write_file(self._files / name, content)
            except OSError as error:
                raise UserError(unwritable(self.root, error)) from None
            self._known.add(str(path))


def _write_whole(target: Path, content: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise UserError(unwritable(target.parent, error)) from None


def unwritable(root: Path, error: OSError) -> str:
    """The message about a cache directory that does not take what is to be kept."""
    return (
        f"cache_dir: {root} cannot be written ({error.strerror}); what is compiled is kept there. Make room, or name a "
        "directory that you can write to."
    )


def mark_used(path: Path) -> None:
    """Set a file's time: where the cache has a limit, the files that were not used for longest are removed first."""
    with contextlib.suppress(OSError):  # read-only
        os.utime(path)


def _is_plain(path: str) -> bool:
    return not path.startswith("/") and ".." not in Path(path).parts


@cache
def _workspace(root: Path) -> Path:
    """This process's directory, removed when it ends; when it is killed, by the next one."""
    stack = contextlib.ExitStack()
    try:
        workspace = stack.enter_context(staging_directory(root))
    except OSError:
        workspace = stack.enter_context(staging_directory(Path(tempfile.gettempdir())))
    owner = os.getpid()
    atexit.register(lambda: stack.close() if os.getpid() == owner else None)
    return workspace
