"""The output file: a JSON line per finished request, whole lines only."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.result import RequestResult


class OutputFile:
    """Created with the first line, so that a run that fails before it leaves nothing.

    path: None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = 0  # bytes of the whole lines
        self._lines = 0
        self._missing = 0  # lines that could not be written
        self._error: OSError | None = None

    def write(self, index: int, prompt: str | None, result: RequestResult, backend: str) -> None:
        """Append a request that came to its end, not one that was aborted; `index` is its place among the prompts,
        `backend` the description of what answered it.

        It is called while the engine runs, so a file that cannot take the line raises nothing here: `check` does.
        """
        if self._path is None or result.finish_reason not in ("stop", "length"):
            return
        line = json.dumps(
            {
                "index": index,
                "prompt": prompt,
                "prompt_token_ids": result.prompt_token_ids,
                "text": result.text,
                "token_ids": result.token_ids,
                "finish_reason": result.finish_reason,
                "ttft_s": result.ttft_s,
                "decode_tokens_per_s": result.decode_tokens_per_s,
                "backend": backend,
            },
            ensure_ascii=False,
        )
        try:
            if self._error is None:
                self._append(line.encode() + b"\n")
        except OSError as error:
            self._error = error
        self._missing += self._error is not None
        self._lines += self._error is None

    def check(self) -> None:
        """Raise UserError if a line could not be written."""
        if self._error is not None:
            raise UserError(
                f"output_file: {self._path} could not be written ({self._error.strerror}). It holds "
                f"{self._lines} of {self._lines + self._missing} requests. Make room, or name another file; then run "
                "again."
            )

    def _append(self, line: bytes) -> None:
        """The whole line, or, whatever happens, none of it."""
        if self._descriptor is None:
            assert self._path is not None
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException:
            with suppress(OSError):  # a pipe or a device cannot take anything back
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
