"""Random weights in place of a checkpoint, for runs that measure speed and memory."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from graph_gemma.graph_model.checkpoint import expected_tensors
from graph_gemma.graph_model.checkpoint.expected import EMBEDDING
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.quantization.scheme import RANDOM_STD
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.weights import Part, Read, take_part

_PATTERN_SIZE = 1 << 20


def random_weights(config: GemmaConfig, quantization: Quantization | None = None) -> Read:
    """A reader of tensors of the model's shapes, equal in every run: normal, scaled by fan_in ** -0.5; norms 0.

    Large tensors repeat a pattern of a million values from an offset of their own, so that billions of parameters
    take seconds. Where `quantization` says that the checkpoint is quantized, its int8 parts are made as well.
    """
    stored = quantization.linears if quantization is not None and quantization.stored else ()
    scheme = scheme_of(quantization)
    shapes = expected_tensors(config)
    pattern = torch.randn(_PATTERN_SIZE, generator=torch.Generator().manual_seed(0))
    integers = (pattern * RANDOM_STD).clamp_(-127, 127).to(torch.int8)

    def read(name: str, part: Part | None = None) -> Tensor:
        path, _, kind = name.rpartition(".")
        if scheme is not None and path in stored:
            shape = shapes.get(f"{path}.weight", shapes[EMBEDDING])  # a tied head's is the embedding's
            if kind != "weight":
                return take_part(scheme.random_tensor(kind, shape), part)
            return values(integers, name, shape, part)
        shape = shapes[name]
        if len(shape) == 1:
            return take_part(torch.zeros(shape), part)
        return values(pattern, name, shape, part).mul_(shape[1] ** -0.5)

    def values(pattern: Tensor, name: str, shape: tuple[int, ...], part: Part | None) -> Tensor:
        first, last = part[1:] if part is not None and part[0] == 0 else (0, shape[0])
        offset = (zlib.crc32(name.encode()) + first * shape[1]) % _PATTERN_SIZE
        size = (last - first) * shape[1]
        repeats = -(-(size + offset) // _PATTERN_SIZE)
        rows = pattern.repeat(repeats)[offset : offset + size].view(last - first, shape[1])
        return rows if part is None or part[0] == 0 else take_part(rows, part)

    return read
