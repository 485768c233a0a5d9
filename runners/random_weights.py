"""Random weights in place of a checkpoint, for runs that measure speed and memory."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from graph_model.checkpoint import expected_tensors
from graph_model.config import GemmaConfig
from graph_model.weights import Read

_PATTERN_SIZE = 1 << 20


def random_weights(config: GemmaConfig) -> Read:
    """A reader of tensors of the model's shapes, equal in every run: normal, scaled by fan_in ** -0.5; norms 0.

    Large tensors repeat a pattern of a million values from an offset of their own, so that billions of parameters
    take seconds.
    """
    shapes = expected_tensors(config)
    pattern = torch.randn(_PATTERN_SIZE, generator=torch.Generator().manual_seed(0))

    def read(name: str) -> Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.zeros(shape)
        offset = zlib.crc32(name.encode()) % _PATTERN_SIZE
        size = shape[0] * shape[1]
        repeats = -(-(size + offset) // _PATTERN_SIZE)
        values = pattern.repeat(repeats)[offset : offset + size].view(shape)
        return values.mul_(shape[1] ** -0.5)

    return read
