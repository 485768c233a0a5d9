"""A digest that tells one checkpoint's files from another's without reading their tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from graph_gemma.graph_model.checkpoint.layout import find_safetensors
from graph_gemma.graph_model.errors import UserError

_LENGTH_BYTES = 8  # in front of the header: its length, little-endian


def checkpoint_identity(directory: Path) -> str:
    """A digest of the weight files' sizes and headers: names, dtypes, shapes and places of all tensors.

    Raises UserError if there are no such files or one cannot be read.
    """
    digest = hashlib.sha256()
    for path in find_safetensors(directory).paths:
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = file.read(_LENGTH_BYTES)
                header = file.read(min(int.from_bytes(length, "little"), size))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from None
        digest.update(f"{size} {hashlib.sha256(length + header).hexdigest()}\n".encode())
    return digest.hexdigest()
