"""The output file: a JSON line per finished request, whole lines only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from graph_model.errors import UserError
from runners.engine.result import RequestResult


class OutputFile:
    """Created with the first line, so that a run that fails before it leaves nothing. Each line is one write.

    path: None writes nothing. Raises UserError at once if the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else _writable(Path(path).expanduser())
        self._descriptor: int | None = None

    def write(self, index: int, prompt: str | None, result: RequestResult) -> None:
        """Append a request that came to its end, not one that was aborted; `index` is its place among the prompts."""
        if self._path is None or result.finish_reason not in ("stop", "length"):
            return
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
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
            },
            ensure_ascii=False,
        )
        os.write(self._descriptor, line.encode() + b"\n")

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _writable(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"output_file: {path} is a directory; name a file in it.")
    target = path if path.exists() else path.parent
    if not target.exists():
        raise UserError(f"output_file: the directory {target} does not exist. Create it, or name another file.")
    if not os.access(target, os.W_OK):
        raise UserError(f"output_file: {path} cannot be written (no permission). Name another file.")
    return path
