"""Scheme: one way to quantize linears, as checkpoints, graphs, ranks, the quantizer and chips need it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.quantization.int8 import decode_scale
from graph_gemma.graph_model.weights import Expression

Dialect = Literal["atb", "vllm_ascend"]
ReadTensor = Callable[[str], Tensor]
FLOATS = ("F16", "BF16", "F32")
RANDOM_STD = 32  # of int8 weights that are random in place of a checkpoint's


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a quantized linear with n outputs and k inputs, as checkpoints in ModelSlim's layout hold it."""

    sizes: str  # of its dimensions: "n k", "n 1", "1"
    dtypes: tuple[str, ...]  # legal ones, by safetensors' names
    required: bool = True


@dataclass(frozen=True)
class ActivationScale:
    """q = round(x / scale + offset): float32 scale, which the stored dtype holds exactly, and an integer offset."""

    scale: float
    offset: int

    def rounded(self, x: Tensor) -> Tensor:
        """x as int8 holds it, in float32."""
        q = ops.quantize(x, torch.tensor([self.scale]), torch.tensor([float(self.offset)]))
        return (q.float() - self.offset) * self.scale


class LinearSite(Protocol):
    """A linear in a graph, y = linear(x, w, bias), that a scheme replaces. Nodes are inserted before it."""

    x: fx.Node
    bias: fx.Node | None  # in floating point
    dtype: torch.dtype  # of the result

    def weight(self, name: str) -> fx.Node:
        """The weight that `Scheme.weights` calls `name`, of all linears that the node computes together."""

    def input_weight(self, name: str) -> fx.Node:
        """The weight that `Scheme.input_weights` calls `name`."""

    def insert(self, target: Callable[..., object], *args: object) -> fx.Node:
        """A call of `target`."""

    def quantize_input(self, target: Callable[..., object], *scales: fx.Node) -> fx.Node:
        """A call of `target` on x, which all linears of x share."""

    def all_reduce(self, total: fx.Node) -> fx.Node:
        """The sum of the ranks' `total` where each has a part of w's columns, with the bias in it; else `total`."""


class Scheme(ABC):
    """A quantization of linears; each has a file of this package, which names it, and one object, SCHEME.

    `weight`, where a method takes it, is the plain model's weight [out, in] of the linear at `path`: a tensor of a
    floating-point checkpoint, or what `plain` makes of a quantized one.
    """

    name: ClassVar[str]  # in settings, and in config.json as "quantize"
    modelslim: ClassVar[str]  # in ModelSlim's descriptions
    # How activations become integers: one scale of each linear's input, which the checkpoint has from calibration; one
    # of each token, taken when the model runs; None: they stay in floating point.
    activations: ClassVar[Literal["per_tensor", "per_token"] | None] = None
    # Whether several ranks compute what one does: shares of row-parallel layers are summed as integers, and those of
    # layers that stay in floating point in float32.
    exact_sums: ClassVar[bool] = False
    ascend_ops: ClassVar[tuple[str, ...]] = ()  # ops that an Ascend chip needs to have for it
    tensors: ClassVar[Mapping[str, StoredTensor]]  # of each linear in a checkpoint, by the end of their names
    holds_bias: ClassVar[bool] = False  # whether one of them has the linear's bias in it

    @property
    def calibrated(self) -> bool:
        """Whether only a quantized checkpoint has what it needs: the scales of activations."""
        return self.activations == "per_tensor"

    @abstractmethod
    def plain(self, path: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Expression:
        """The plain model's parameter PATH.KIND, weight or bias, made of what a checkpoint stores."""

    @abstractmethod
    def weights(self, path: str, weight: Expression) -> dict[str, Expression]:
        """The weights that a linear has instead of `weight`, by the ends of their names."""

    def input_weights(self, path: str) -> dict[str, Expression]:
        """Weights of the input of `path`, the first of the linears that read it, which all of these share."""
        return {}

    @abstractmethod
    def compute(self, linear: LinearSite) -> fx.Node:
        """Insert what computes the linear; returns the node of its result."""

    @abstractmethod
    def store(
        self, weight: Tensor, bias: Tensor | None, x: ActivationScale | None, dtype: torch.dtype, dialect: Dialect
    ) -> dict[str, Tensor]:
        """The tensors of a linear in a checkpoint of a model in `dtype`, by the ends of their names.

        weight float32 [out, in], bias [out]. x: of a calibrated scheme. dialect: whose layout is written, MindIE's
        (atb) or vllm-ascend's.
        """

    def random_tensor(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """In place of a checkpoint's tensor `kind` of a weight [out, in] of random integers; of calibrated schemes."""
        raise NotImplementedError(f"{self.name} is made of floating-point weights")

    def check_input(self, directory: Path, path: str, owner: str, read: ReadTensor) -> None:  # noqa: B027
        """Raise UserError unless a linear's input scale is legal and equal to that of `owner`, which reads it first."""


def check_scale(directory: Path, name: str, read: ReadTensor) -> None:
    """Raise UserError unless scales of output channels are finite; a channel without weights may have 0."""
    stored = read(name)
    scale = stored if stored.is_floating_point() else decode_scale(stored)
    legal = torch.isfinite(scale) & (scale >= 0)
    if not bool(legal.all()):
        channel = int(legal.flatten().logical_not().nonzero()[0])
        raise UserError(
            f"{directory}: {name} is {scale.flatten()[channel].item():g} for channel {channel}; scales are finite and "
            "not below 0. The checkpoint is damaged: copy it again, or quantize the floating-point original again."
        )
