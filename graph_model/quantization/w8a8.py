"""w8a8: int8 weights per output channel, int8 activations with one scale and offset per tensor, from calibration.

A linear has weight (int8), input_scale, input_offset, deq_scale = input_scale * the weight's scales, and quant_bias:
the bias and the correction for input_offset, in steps of deq_scale. deq_scale may be the bits of float32 in int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.quantization.int8 import Dequantized, decode_scale, int8_weight, quantize_weight
from graph_gemma.graph_model.quantization.scheme import (
    FLOATS,
    RANDOM_STD,
    ActivationScale,
    Dialect,
    LinearSite,
    ReadTensor,
    Scheme,
    StoredTensor,
)
from graph_gemma.graph_model.weights import CheckpointTensor, Expression, Read, RowwiseExpression, row_blocks


class W8A8(Scheme):
    """y = dequantize(int_linear(quantize(x, input_scale, input_offset), w8, quant_bias), deq_scale).

    Where ranks share the columns of w, they sum integers, so that several ranks compute what one does::

        all_reduce(aten.linear(x, w))  ->  dequantize(all_reduce(int_linear(q, w8, partial_bias)), deq_scale)
    """

    name: ClassVar[str] = "w8a8"
    modelslim: ClassVar[str] = "W8A8"
    activations: ClassVar[Literal["per_tensor", "per_token"] | None] = "per_tensor"
    exact_sums: ClassVar[bool] = True
    tensors: ClassVar[Mapping[str, StoredTensor]] = {
        "weight": StoredTensor("n k", ("I8",)),
        "input_scale": StoredTensor("1", FLOATS),
        "input_offset": StoredTensor("1", (*FLOATS, "I8")),
        "quant_bias": StoredTensor("n", ("I32",)),
        "deq_scale": StoredTensor("n", ("I64", "F32")),
        "weight_scale": StoredTensor("n 1", FLOATS, required=False),
        "weight_offset": StoredTensor("n 1", FLOATS, required=False),
    }
    holds_bias: ClassVar[bool] = True

    def plain(self, path: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Expression:
        return (StaticDequantized if kind == "weight" else DequantizedBias)(path, shape, dtype)

    def weights(self, path: str, weight: Expression) -> dict[str, Expression]:
        rows = weight.shape[:1]
        return {
            "int8": int8_weight(path, weight),
            "deq_scale": DeqScale(f"{path}.deq_scale", rows),
            "quant_bias": QuantBias(f"{path}.quant_bias", rows, torch.int32),
        }

    def input_weights(self, path: str) -> dict[str, Expression]:
        return {
            name: CheckpointTensor(f"{path}.{name}", (1,), torch.float32) for name in ("input_scale", "input_offset")
        }

    def compute(self, linear: LinearSite) -> fx.Node:
        int8 = linear.weight("int8")
        scale, offset = (linear.input_weight(name) for name in ("input_scale", "input_offset"))
        q = linear.quantize_input(ops.quantize, scale, offset)
        deq_scale, quant_bias = linear.weight("deq_scale"), linear.weight("quant_bias")
        total = linear.all_reduce(linear.insert(ops.int_linear, q, int8, quant_bias))
        return linear.insert(ops.dequantize, total, deq_scale, None, None, linear.dtype)

    def store(
        self, weight: Tensor, bias: Tensor | None, x: ActivationScale | None, dtype: torch.dtype, dialect: Dialect
    ) -> dict[str, Tensor]:
        assert x is not None
        q, weight_scale = quantize_weight(weight)
        deq_scale = weight_scale * x.scale
        correction = -x.offset * q.sum(1, dtype=torch.int64).double()
        wide = correction if bias is None else correction + bias.double() / deq_scale.double()
        stored = {
            "weight": q,
            "input_scale": torch.tensor([x.scale]).to(dtype),
            "input_offset": torch.tensor([x.offset]).to(dtype),
            "quant_bias": wide.round().clamp(-(2**31), 2**31 - 1).to(torch.int32),
            "deq_scale": deq_scale.view(torch.int32).long() if dtype == torch.float16 else deq_scale,
        }
        if dialect == "vllm_ascend":
            stored["weight_scale"] = weight_scale[:, None].to(dtype)
            stored["weight_offset"] = torch.zeros(len(weight_scale), 1, dtype=dtype)
        return stored

    def random_tensor(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """Scales under which a linear of unit input has unit output, and no offsets."""
        step = 4.0 / 127
        if kind == "input_scale":
            return torch.tensor([step])
        if kind == "deq_scale":
            return torch.full(shape[:1], step / RANDOM_STD * shape[1] ** -0.5)
        return torch.zeros(shape[:1], dtype=torch.int32) if kind == "quant_bias" else torch.zeros(1)

    def check_input(self, directory: Path, path: str, owner: str, read: ReadTensor) -> None:
        scale, offset = (read(f"{path}.{kind}").float().item() for kind in ("input_scale", "input_offset"))
        if not 0 < scale < float("inf") or offset != round(offset) or not -128 <= offset <= 127:
            raise UserError(
                f"{directory}: {path} has input_scale {scale:g} and input_offset {offset:g}; the first must be "
                "above 0 and the second an integer of int8. Quantize the floating-point original again."
            )
        shared = tuple(read(f"{owner}.{kind}").float().item() for kind in ("input_scale", "input_offset"))
        if (scale, offset) != shared:
            raise UserError(
                f"{directory}: {path} and {owner} have one input, but the input_scale {scale:g} and {shared[0]:g} "
                f"and the input_offset {offset:g} and {shared[1]:g}. They are computed together and must be equal; "
                "quantize the floating-point original again."
            )


@dataclass(frozen=True)
class DeqScale(RowwiseExpression):
    """A stored deq_scale: float32 [out]."""

    name: str
    shape: tuple[int, ...]
    packed: bool = False  # int64 instead, as Ascend's quantized products take it, see `pack_scale`

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.packed else torch.float32

    def write_rows(self, out: Tensor, start: int, stop: int, read: Read) -> None:
        scale = decode_scale(self.read_rows(self.name, start, stop, read))
        out.copy_(pack_scale(scale) if self.packed else scale)

    def __str__(self) -> str:
        return f"float32({self.name})"


@dataclass(frozen=True)
class StaticDequantized(Dequantized):
    """A weight whose scale is deq_scale / input_scale."""

    def scale(self, start: int, stop: int, read: Read) -> Tensor:
        scale = decode_scale(self.read_rows(f"{self.path}.deq_scale", start, stop, read))
        return scale / read(f"{self.path}.input_scale").float()


@dataclass(frozen=True)
class DequantizedBias(Expression):
    """The floating-point bias that quant_bias holds besides its zero-point correction."""

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
class QuantBias(CheckpointTensor):
    """A stored quant_bias: int32 [out]. Of a rank that has some columns of the weight, its share of the sum."""

    def share(self, dim: int, start: int, stop: int, size: int) -> Expression:
        if dim == 0:
            return super().share(dim, start, stop, size)
        return PartialBias(self.name.removesuffix(".quant_bias"), self.shape, start, stop)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class PartialBias(Expression):
    """A rank's share of a quant_bias where the columns of the weight are shared out: int32 [out].

    The correction for input_offset over the rank's own columns, [start, stop); the rank of the first columns adds what
    quant_bias holds besides corrections. The ranks' shares sum to quant_bias.
    """

    path: str
    shape: tuple[int, ...]
    start: int
    stop: int
    dtype: ClassVar[torch.dtype] = torch.int32

    def write(self, out: Tensor, read: Read) -> None:
        offset = read(f"{self.path}.input_offset").to(torch.int32)
        if self.start:
            out.copy_(-offset * read(f"{self.path}.weight", (1, self.start, self.stop)).sum(1, dtype=torch.int32))
            return
        # The other ranks' corrections, which quant_bias holds: their columns are read a few rows at a time.
        out.copy_(read(f"{self.path}.quant_bias"))
        for first, last in row_blocks(0, self.shape[0]):
            rows = read(f"{self.path}.weight", (0, first, last))
            out[first:last] += offset * rows[:, self.stop :].sum(1, dtype=torch.int32)

    def __str__(self) -> str:
        return f"partial_bias({self.path}[:, {self.start}:{self.stop}])"


def pack_scale(scale: Tensor) -> Tensor:
    """float32 scales as int64: their bits without the last 13, and bit 46 set. Ascend's TransQuantParamV2."""
    return (scale.view(torch.int32).long() & 0xFFFFE000) | (1 << 46)


SCHEME = W8A8()
