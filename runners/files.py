"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from graph_model.errors import UserError


def check_writable(name: str, value: object) -> Path | None:
    """The path in the setting `name`; None where it is not set. Raises UserError unless a file can be written there."""
    if value is None:
        return None
    path = Path(str(value)).expanduser()
    if path.is_dir():
        raise UserError(f"{name}: {path} is a directory; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"{name}: the directory {path.parent} does not exist. Create it, or name another file.")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{name}: {path} cannot be written (no permission). Name another file.")
    return path


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
