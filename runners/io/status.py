"""Status lines: what a command or an LLM is doing, on stderr while answers go to stdout."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

SILENT, PHASES, ALL = 0, 1, 2  # the setting verbosity


class Status:
    """Call it with what begins now. On a terminal one line is rewritten, elsewhere each is a line of its own.

    verbosity: SILENT says nothing; ALL keeps every line, with the time that it took.
    """

    def __init__(self, verbosity: int = PHASES, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._verbosity = verbosity
        self._rewrites = verbosity == PHASES and self._stream.isatty()
        self._text, self._since = "", 0.0

    def __call__(self, text: str) -> None:
        """Say that `text` begins, and so that what was said before has ended."""
        self.done()
        self._text, self._since = text, time.perf_counter()
        if self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]}\x1b[K", end="", file=self._stream, flush=True)
        elif self._verbosity == PHASES:
            print(f"graph-gemma: {text}", file=self._stream, flush=True)

    def done(self) -> None:
        """What was said last has ended; its line makes room for others."""
        if self._text and self._rewrites:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
        elif self._text and self._verbosity == ALL:
            took = time.perf_counter() - self._since
            print(f"graph-gemma: {self._text} ({took:.1f} s)", file=self._stream, flush=True)
        self._text = ""


QUIET = Status(SILENT)
