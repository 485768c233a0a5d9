"""Running a command of runners/ in this process, as the command line would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from graph_gemma.runners.command_line.entry import main


@dataclass
class CommandResult:
    """Exit status and what was printed."""

    status: int
    stdout: str
    stderr: str


def run_command(
    command: Callable[[Any], None],
    config_name: str,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> CommandResult:
    """Run `command` as `python runners/<config_name>.py ARGUMENTS` does."""
    monkeypatch.setattr(sys, "argv", [f"{config_name}.py", *arguments])
    status = 0
    try:
        main(command, config_name)
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    captured = capsys.readouterr()
    return CommandResult(status, captured.out, captured.err)
