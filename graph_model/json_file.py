"""Read JSON files from elsewhere, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError

# Those of real checkpoints have less than 1 MB; parsing can take fifty times the file's size.
LARGEST_BYTES = 16 << 20


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises UserError naming the file and the way out."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MB")
        value = json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError, too
        raise UserError(f"{path} is not valid JSON ({error}). Copy it again from the original.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; it must hold an object. Copy it again.")
    return value
