"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.settings.values import text_or_none


def check_writable(name: str, value: Any, *, replaced: bool = False) -> Path | None:
    """The path in the setting `name`; None where it is not set. Raises UserError unless a file can be written there.

    The file is opened to find that out, and removed again if it is new. replaced: it is going to be written by
    `write_text`, which needs the right to write to its directory too.
    """
    text = text_or_none(name, value)
    if text is None:
        return None
    path = Path(text).expanduser()
    if path.is_dir():
        raise UserError(f"{name}: {path} is a directory; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"{name}: the directory {path.parent} does not exist. Create it, or name another file.")
    if replaced and not os.access(path.parent, os.W_OK):
        raise UserError(f"{name}: {path} cannot be written (no permission). Name another file.")
    try:
        _try_to_open(path)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be written ({error.strerror}). Name another file.") from None
    return path


def _try_to_open(path: Path) -> None:
    new = not path.exists()
    if not new and stat.S_ISFIFO(path.stat().st_mode):
        return  # opening and closing it would end its reader
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    if new:
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file by way of a temporary one beside it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def time_stamp() -> str:
    """Now, for file names that no other run has: 2026-11-26T03-14-07.123456, as lm-evaluation-harness writes it."""
    return datetime.now().isoformat(timespec="microseconds").replace(":", "-")
