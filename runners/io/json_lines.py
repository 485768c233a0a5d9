"""Read JSONL files: an item per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError


def read_json_lines(setting: str, path: Path, form: str) -> list[tuple[str, Any]]:
    """Where each line stands, as errors name it, and its value; empty lines are skipped.

    setting: that names the file. form: what a line must be, as a sentence. Raises UserError naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}: {path} cannot be read ({error}). Give a JSONL file in UTF-8.") from None
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            source = f"{path}, line {number}"
            try:
                items.append((source, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{setting}: {source} is not JSON ({error}). {form}") from None
    if not items:
        raise UserError(f"{setting}: {path} holds no items. {form}")
    return items
