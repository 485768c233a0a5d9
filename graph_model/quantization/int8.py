"""int8 weights per output channel, symmetric: q = round(w / scale), scale = max|w| / 127, 1 where a channel is zero.

As expressions: made of floating-point weights when they are loaded, or read from a checkpoint that holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model.weights import CheckpointTensor, Expression, Read, RowwiseExpression


@dataclass(frozen=True)
class ChannelScale(RowwiseExpression):
    """Scales of the output channels of the checkpoint's matrix `name`, taken in `source_dtype`: `dtype` [out]."""

    name: str
    shape: tuple[int, ...]
    source_dtype: torch.dtype
    dtype: torch.dtype = torch.float32

    def write_rows(self, out: Tensor, start: int, stop: int, read: Read) -> None:
        out.copy_(channel_scale(self.read_rows(self.name, start, stop, read).to(self.source_dtype)))

    def __str__(self) -> str:
        return f"channel_scale({self.name})"


@dataclass(frozen=True)
class QuantizedWeight(RowwiseExpression):
    """The checkpoint's matrix `name`, taken in `source_dtype`, quantized per output channel: int8 [out, in]."""

    name: str
    shape: tuple[int, ...]
    source_dtype: torch.dtype
    dtype: ClassVar[torch.dtype] = torch.int8

    def write_rows(self, out: Tensor, start: int, stop: int, read: Read) -> None:
        out.copy_(quantize_weight(self.read_rows(self.name, start, stop, read).to(self.source_dtype))[0])

    def __str__(self) -> str:
        return f"int8({self.name})"


@dataclass(frozen=True)
class Dequantized(RowwiseExpression):
    """The plain model's floating-point weight of the linear `path`, which a checkpoint stores in int8."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def scale(self, start: int, stop: int, read: Read) -> Tensor:
        """float32 scales of rows [start, stop)."""
        return self.read_rows(f"{self.path}.weight_scale", start, stop, read).reshape(-1).float()

    def write_rows(self, out: Tensor, start: int, stop: int, read: Read) -> None:
        rows = self.read_rows(f"{self.path}.weight", start, stop, read).float()
        out.copy_(rows * self.scale(start, stop, read)[:, None])

    def __str__(self) -> str:
        return f"dequantized({self.path})"


def int8_weight(path: str, weight: Expression) -> Expression:
    """The int8 weight of a linear whose plain weight is `weight`."""
    if isinstance(weight, Dequantized):
        return CheckpointTensor(f"{path}.weight", weight.shape, torch.int8)
    assert isinstance(weight, CheckpointTensor)
    return QuantizedWeight(weight.name, weight.shape, weight.dtype)


def weight_scale(path: str, weight: Expression) -> Expression:
    """The float32 scales of the output channels of `int8_weight`."""
    if isinstance(weight, Dequantized):
        return CheckpointTensor(f"{path}.weight_scale", weight.shape[:1], torch.float32)
    assert isinstance(weight, CheckpointTensor)
    return ChannelScale(weight.name, weight.shape[:1], weight.dtype)


def channel_scale(weight: Tensor) -> Tensor:
    """max|w| / 127 of each row of a matrix, in float32; 1 for a row of zeros."""
    low, high = weight.aminmax(dim=1)
    largest = torch.maximum(high, -low).float()
    return torch.where(largest > 0, largest / 127.0, 1.0)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and float32 scales [out] of a matrix."""
    scale = channel_scale(weight)
    return (weight.float() / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def decode_scale(stored: Tensor) -> Tensor:
    """The float32 scales in a stored deq_scale: float32 itself, or its bits in the low half of int64."""
    if stored.dtype == torch.int64:
        return (stored & 0xFFFFFFFF).to(torch.uint32).view(torch.float32)
    return stored.float()
