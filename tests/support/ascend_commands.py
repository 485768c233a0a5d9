"""Commands over the stand-in, run in this process, on a small checkpoint."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runners.entry import main as run_command
from support import torchair_steps as steps
from support.checkpoints import make_checkpoint

TINY = replace(steps.BASE, num_hidden_layers=1)


def command(run: Callable[[Any], None], name: str, *arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{name}.py", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(run, name)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


def checkpoint(folder: Path, dtype: torch.dtype = torch.float16) -> list[str]:
    """Settings that name a small checkpoint."""
    make_checkpoint(folder / "checkpoint", TINY, dtype=dtype)
    return [f"model.path={folder / 'checkpoint'}", f"cache_dir={folder / 'cache'}"]
