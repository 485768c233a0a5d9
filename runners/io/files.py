"""The files that a command is asked to write, checked before anything is run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.settings.schema import Settings, inputs


def output_file(settings: Settings, name: str, *, replaced: bool = False) -> Path | None:
    """The path in the setting `name`; None where it is not set. Raises UserError unless a file may be written there.

    The file is opened to find that out, and removed again if it is new. replaced: it is going to be written by
    `write_file`, which needs the right to write to its directory too.
    """
    value = getattr(settings, name)
    if value is None:
        return None
    path = Path(value).expanduser()
    if path.is_dir():
        raise UserError(f"{name}: {path} is a directory; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"{name}: the directory {path.parent} does not exist. Create it, or name another file.")
    check_not_there(settings, name, path)
    if replaced and not os.access(path.parent, os.W_OK):
        raise UserError(f"{name}: {path} cannot be written (no permission). Name another file.")
    try:
        _try_to_open(path)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be written ({error.strerror}). Name another file.") from None
    return path


def check_not_there(settings: Settings, name: str, path: Path) -> None:
    """Raise UserError if the result `path`, for which the setting `name` asks, is a file that must not be replaced.

    That is one that this run reads; and any other unless overwrite=true. Devices and pipes are written to.
    """
    if not path.is_file():
        return
    for setting, source in _input_files(settings):
        if os.path.samefile(source, path):
            raise UserError(f"{name}: {path} is what this run reads ({setting}). Name another file.")
    if not getattr(settings, "overwrite", False):
        raise UserError(f"{name}: {path} exists already. Name another file, or replace it with overwrite=true.")


def _input_files(settings: Settings) -> Iterator[tuple[str, str]]:
    for name, value in inputs(settings):
        place = os.path.expanduser(value)
        inside = [os.path.join(place, entry) for entry in os.listdir(place)] if os.path.isdir(place) else []
        # Prompts and answers in a checkpoint's directory are no part of it.
        parts = [entry for entry in inside if not entry.endswith(".jsonl")]
        yield from ((name, file) for file in (place, *parts) if os.path.isfile(file))


def _try_to_open(path: Path) -> None:
    new = not path.exists()
    if not new and stat.S_ISFIFO(path.stat().st_mode):
        return  # opening and closing it would end its reader
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    if new:
        path.unlink()


def time_stamp() -> str:
    """Now, for file names that no other run has: 2026-11-26T03-14-07.123456, as lm-evaluation-harness writes it."""
    return datetime.now().isoformat(timespec="microseconds").replace(":", "-")
