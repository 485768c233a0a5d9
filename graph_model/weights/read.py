"""Read: the function that returns a checkpoint tensor by name, whole or a part of it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Part = tuple[int, int, int]  # dimension, start, stop


class Read(Protocol):
    """Returns a checkpoint tensor by name, or a part of it without touching the rest."""

    def __call__(self, name: str, part: Part | None = None, /) -> Tensor: ...


def take_part(tensor: Tensor, part: Part | None) -> Tensor:
    """The part of a tensor that is in memory."""
    return tensor if part is None else tensor.narrow(part[0], part[1], part[2] - part[1])
