"""Weights of quantized linears as expressions: made from floating-point tensors, or read from quantized checkpoints.

Weights are int8 per output channel, symmetric: q = round(w / scale), scale = max|w| / 127 of the channel, 1 where a
channel is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from graph_model.weights.read import Read

_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class ChannelScale:
    """Scales of the output channels of the checkpoint's matrix `name`, taken in `source_dtype`: `dtype` [out]."""

    name: str
    shape: tuple[int, ...]
    source_dtype: torch.dtype
    dtype: torch.dtype = torch.float32

    def write(self, out: Tensor, read: Read) -> None:
        for rows, weight in _row_blocks(self.name, self.shape[0], read):
            out[rows] = channel_scale(weight.to(self.source_dtype))

    def __str__(self) -> str:
        return f"channel_scale({self.name})"


@dataclass(frozen=True)
class QuantizedWeight:
    """The checkpoint's matrix `name`, taken in `source_dtype`, quantized per output channel: int8 [out, in]."""

    name: str
    shape: tuple[int, ...]
    source_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8

    def write(self, out: Tensor, read: Read) -> None:
        for rows, weight in _row_blocks(self.name, self.shape[0], read):
            out[rows] = quantize_weight(weight.to(self.source_dtype))[0]

    def __str__(self) -> str:
        return f"int8({self.name})"


@dataclass(frozen=True)
class DeqScale:
    """A `deq_scale` of ModelSlim's format: float32 [out], stored as such or as its bits in int64.

    packed: int64 as Ascend's quantized products take it, see `pack_scale`.
    """

    name: str
    shape: tuple[int, ...]
    packed: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.packed else torch.float32

    def write(self, out: Tensor, read: Read) -> None:
        scale = decode_scale(read(self.name))
        out.copy_(pack_scale(scale) if self.packed else scale)

    def __str__(self) -> str:
        return f"float32({self.name})"


@dataclass(frozen=True)
class Dequantized:
    """The floating-point weight of the linear `path` that a checkpoint stores in int8: what the plain model reads.

    static: its scale is deq_scale / input_scale; otherwise weight_scale.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    static: bool

    def write(self, out: Tensor, read: Read) -> None:
        out.copy_(read(f"{self.path}.weight").float() * _weight_scale(self.path, self.static, read)[:, None])

    def __str__(self) -> str:
        return f"dequantized({self.path})"


@dataclass(frozen=True)
class DequantizedBias:
    """The floating-point bias that the quant_bias of a static linear holds besides its zero-point correction."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def write(self, out: Tensor, read: Read) -> None:
        sums = read(f"{self.path}.weight").sum(1, dtype=torch.int32)
        integers = read(f"{self.path}.quant_bias") + read(f"{self.path}.input_offset").to(torch.int32) * sums
        out.copy_(integers.float() * decode_scale(read(f"{self.path}.deq_scale")))

    def __str__(self) -> str:
        return f"dequantized_bias({self.path})"


@dataclass(frozen=True)
class PartialBias:
    """A rank's share of the quant_bias of a static linear whose columns are shared out: int32 [out].

    The correction for input_offset over the rank's own columns, [start, stop); the rank of the first columns adds what
    quant_bias holds besides corrections. The ranks' shares sum to quant_bias.
    """

    path: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.int32

    def write(self, out: Tensor, read: Read) -> None:
        offset = read(f"{self.path}.input_offset").to(torch.int32)
        if self.start:
            out.copy_(-offset * read(f"{self.path}.weight", (1, self.start, self.stop)).sum(1, dtype=torch.int32))
            return
        # The other ranks' corrections, which quant_bias holds: their columns are read a few rows at a time.
        out.copy_(read(f"{self.path}.quant_bias"))
        for rows, weight in _row_blocks(f"{self.path}.weight", self.shape[0], read):
            out[rows] += offset * weight[:, self.stop :].sum(1, dtype=torch.int32)

    def __str__(self) -> str:
        return f"partial_bias({self.path}[:, {self.start}:{self.stop}])"


_TYPES = (ChannelScale, QuantizedWeight, DeqScale, Dequantized, DequantizedBias, PartialBias)
QuantizedExpression = ChannelScale | QuantizedWeight | DeqScale | Dequantized | DequantizedBias | PartialBias
# Rows of these come from the same rows of what they read, an input_scale apart.
ROWWISE = (ChannelScale, QuantizedWeight, DeqScale, Dequantized)
_CLASSES = {cls.__name__: cls for cls in _TYPES}


def _row_blocks(name: str, count: int, read: Read) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a matrix, block by block, each with its place: no more of the file than a block is in memory."""
    if count <= _ROWS_AT_A_TIME:
        yield slice(0, count), read(name)
        return
    for start in range(0, count, _ROWS_AT_A_TIME):
        stop = min(start + _ROWS_AT_A_TIME, count)
        yield slice(start, stop), read(name, (0, start, stop))


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


def pack_scale(scale: Tensor) -> Tensor:
    """float32 scales as int64: their bits without the last 13, and bit 46 set. Ascend's TransQuantParamV2."""
    return (scale.view(torch.int32).long() & 0xFFFFE000) | (1 << 46)


def quantized_to_json(expression: QuantizedExpression) -> dict[str, Any]:
    """A JSON form of the expression."""
    values = {field.name: getattr(expression, field.name) for field in fields(expression)}
    texts = {
        name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
        for name, value in values.items()
    }
    return {"quantized": type(expression).__name__, **texts}


def quantized_from_json(raw: dict[str, Any]) -> QuantizedExpression:
    """The expression that `quantized_to_json` wrote."""
    values = {name: value for name, value in raw.items() if name != "quantized"}
    for name, value in values.items():
        if name.endswith("dtype"):
            values[name] = getattr(torch, value)
    values["shape"] = tuple(values["shape"])
    return _CLASSES[raw["quantized"]](**values)


def _weight_scale(path: str, static: bool, read: Read) -> Tensor:
    if not static:
        return read(f"{path}.weight_scale").reshape(-1).float()
    return decode_scale(read(f"{path}.deq_scale")) / read(f"{path}.input_scale").float()
