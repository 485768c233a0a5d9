"""How the tensors of a checkpoint are read: whole, or a part of one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Part = tuple[int, int, int]  # dimension, start, stop


class Read(Protocol):
    """Returns a checkpoint tensor by name, or a part of it without touching the rest."""

    def __call__(self, name: str, part: Part | None = None, /) -> Tensor: ...
