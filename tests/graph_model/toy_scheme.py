"""w6a16: weights rounded to 6 bits per output channel, held in int8; activations stay in floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model.quantization.int8 import Dequantized, channel_scale
from graph_gemma.graph_model.quantization.scheme import ActivationScale, Dialect
from graph_gemma.graph_model.quantization.w8a16 import W8A16
from graph_gemma.graph_model.weights import CheckpointTensor, Expression, Read, RowwiseExpression


class W6A16(W8A16):
    """The graph is that of w8a16; the numbers are coarser."""

    name: ClassVar[str] = "w6a16"
    modelslim: ClassVar[str] = "W6A16"

    def weights(self, path: str, weight: Expression) -> dict[str, Expression]:
        if isinstance(weight, Dequantized):
            return super().weights(path, weight)
        assert isinstance(weight, CheckpointTensor)
        rows = weight.shape[:1]
        return {
            "int8": SixBits(weight.name, weight.shape, torch.int8),
            "scale": SixBits(weight.name, rows, torch.float32),
        }

    def store(
        self, weight: Tensor, bias: Tensor | None, x: ActivationScale | None, dtype: torch.dtype, dialect: Dialect
    ) -> dict[str, Tensor]:
        q, scale = six_bits(weight)
        return super().store(weight, bias, x, dtype, dialect) | {"weight": q, "weight_scale": scale[:, None]}


@dataclass(frozen=True)
class SixBits(RowwiseExpression):
    """The checkpoint's matrix `name` in 6 bits, int8 [out, in]; or its scales, float32 [out]."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def write_rows(self, out: Tensor, start: int, stop: int, read: Read) -> None:
        q, scale = six_bits(self.read_rows(self.name, start, stop, read))
        out.copy_(q if self.dtype == torch.int8 else scale)

    def __str__(self) -> str:
        return f"int6({self.name})"


def six_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from -31 to 31, int8, and float32 scales of the rows."""
    scale = channel_scale(weight) * (127 / 31)
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


SCHEME = W6A16()
