"""What tests of commands over the stand-in share: running a command in this process, and small checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.runners.command_line.entry import main as run_command
from graph_gemma.runners.infer import infer
from support import torchair_steps as steps
from support.checkpoints import make_checkpoint

TINY = replace(steps.BASE, num_hidden_layers=1)
PROMPTS = [[5, 6, 7], list(range(3, 80))]
SERVING = ("max_prefill_tokens=64", "max_prefill_batch_size=1", "max_batch_size=1", "max_seq_len=128")


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


def run_infer(folder: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """What the command printed, and its answers."""
    output = folder / "out.jsonl"
    settings = [f"cache_dir={folder / 'cache'}", f"output_file={output}", "overwrite=true", *arguments]
    status, printed, errors = command(infer, "infer", *settings)
    assert status == 0, errors
    return printed, answers_in(output)


def answers_in(file: Path) -> list[dict[str, Any]]:
    """The answers of an output file in the order of their prompts."""
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda answer: answer["index"])


def checkpoint(folder: Path, config: GemmaConfig = TINY) -> list[str]:
    """Settings that name a small checkpoint."""
    make_checkpoint(folder / "checkpoint", config, dtype=torch.float16)
    return [f"model.path={folder / 'checkpoint'}", f"cache_dir={folder / 'cache'}"]
