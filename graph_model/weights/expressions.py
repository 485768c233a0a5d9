"""The weight plan: each weight of a graph is an expression over checkpoint tensors.

Passes rewrite expressions and never see a tensor. Loading evaluates each expression once, straight into the tensor
that the graph will read, so that a checkpoint of size S is loaded in little more than S of memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graph_model.weights.quantized import ROWWISE, QuantizedExpression, quantized_from_json, quantized_to_json
from graph_model.weights.read import Part, Read

_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class CheckpointTensor:
    """A checkpoint tensor, cast to `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def write(self, out: Tensor, read: Read) -> None:
        out.copy_(read(self.name).reshape(self.shape))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Slice:
    """The part [start, stop) of a tensor along `dim`, and all that is read of it where the part has its own values."""

    x: CheckpointTensor | QuantizedExpression
    dim: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.x.shape[: self.dim], self.stop - self.start, *self.x.shape[self.dim + 1 :])

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def write(self, out: Tensor, read: Read) -> None:
        if isinstance(self.x, CheckpointTensor):
            out.copy_(read(self.x.name, (self.dim, self.start, self.stop)).reshape(self.shape))
        elif self.dim == 0 and isinstance(self.x, ROWWISE):
            _write_rows(self.x, self.start, self.stop, out, read)
        elif self.dim == 1 and isinstance(self.x, ROWWISE):
            # Scales are those of whole rows, which are in memory a few at a time.
            for start in range(0, self.shape[0], _ROWS_AT_A_TIME):
                stop = min(start + _ROWS_AT_A_TIME, self.shape[0])
                rows = torch.empty((stop - start, *self.x.shape[1:]), dtype=self.dtype)
                _write_rows(self.x, start, stop, rows, read)
                out[start:stop] = rows[:, self.start : self.stop]
        else:
            whole = torch.empty(self.x.shape, dtype=self.x.dtype)
            self.x.write(whole, read)
            out.copy_(whole.narrow(self.dim, self.start, self.stop - self.start))

    def __str__(self) -> str:
        return f"{self.x}[{':, ' * self.dim}{self.start}:{self.stop}]"


def _write_rows(x: QuantizedExpression, start: int, stop: int, out: Tensor, read: Read) -> None:
    """Rows [start, stop) of an expression whose rows come from the same rows of what it reads."""

    def read_rows(name: str, part: Part | None = None, /) -> Tensor:
        if name.endswith("input_scale"):
            return read(name)
        first, last = (0, stop - start) if part is None else part[1:]
        return read(name, (0, start + first, start + last))

    replace(x, shape=(stop - start, *x.shape[1:])).write(out, read_rows)


@dataclass(frozen=True)
class Constant:
    """Numbers that are in no checkpoint: a rank's own, which differs from rank to rank, or ones."""

    values: tuple[int, ...]
    dtype: torch.dtype = torch.int64

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.values),)

    def write(self, out: Tensor, read: Read) -> None:
        out.copy_(torch.tensor(self.values))

    def __str__(self) -> str:
        return str(list(self.values))


@dataclass(frozen=True)
class Concat:
    """Parts of one dtype joined along dimension 0."""

    parts: tuple[Expression, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def write(self, out: Tensor, read: Read) -> None:
        start = 0
        for part in self.parts:
            part.write(out.narrow(0, start, part.shape[0]), read)
            start += part.shape[0]

    def __str__(self) -> str:
        return f"cat({', '.join(map(str, self.parts))})"


@dataclass(frozen=True)
class OnePlus:
    """1 + x in float32: the factor of Gemma's RMSNorm, from the weight in its checkpoint dtype."""

    x: CheckpointTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def write(self, out: Tensor, read: Read) -> None:
        out.copy_(read(self.x.name).to(self.x.dtype)).add_(1.0)

    def __str__(self) -> str:
        return f"1 + float32({self.x})"


@dataclass(frozen=True)
class InverseFrequencies:
    """theta ** (-2i / head_dim) for i below head_dim / 2, in float32: the angles per position of rotary embedding."""

    theta: float
    head_dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.head_dim // 2,)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def write(self, out: Tensor, read: Read) -> None:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        out.copy_(torch.reciprocal(self.theta**exponent))

    def __str__(self) -> str:
        return f"inverse_frequencies(theta={self.theta}, head_dim={self.head_dim})"


@dataclass(frozen=True)
class Rounded:
    """An expression's value, rounded to a narrower dtype."""

    x: OnePlus
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def write(self, out: Tensor, read: Read) -> None:
        wide = torch.empty(self.shape, dtype=self.x.dtype)
        self.x.write(wide, read)
        out.copy_(wide)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}({self.x})"


@dataclass(frozen=True)
class CausalMask:
    """True above the diagonal of [size, size], in bool: what a query may not see."""

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bool

    def write(self, out: Tensor, read: Read) -> None:
        out.fill_(True).triu_(1)

    def __str__(self) -> str:
        return f"causal_mask({self.size})"


Expression = (
    CheckpointTensor
    | Slice
    | Constant
    | Concat
    | OnePlus
    | InverseFrequencies
    | Rounded
    | CausalMask
    | QuantizedExpression
)
WeightPlan = dict[str, Expression]


def rows_of(expression: Expression, start: int, stop: int) -> Slice:
    """Rows [start, stop) of a tensor, or of a slice of its rows."""
    if isinstance(expression, Slice):
        assert expression.dim == 0, f"{expression} is a slice of columns"
        return Slice(expression.x, 0, expression.start + start, expression.start + stop)
    assert isinstance(expression, CheckpointTensor | QuantizedExpression), f"{expression} has no slices"
    return Slice(expression, 0, start, stop)


def evaluate(expressions: Iterable[Expression], read: Read, device: torch.device) -> dict[Expression, Tensor]:
    """The tensor of every distinct expression, contiguous on `device`.

    `read` is called once for each use of a CheckpointTensor or Slice. Expressions are computed on the host: a device
    that runs whole graphs only has no kernels for them.
    """
    tensors: dict[Expression, Tensor] = {}
    for expression in expressions:
        if expression not in tensors:
            out = torch.empty(expression.shape, dtype=expression.dtype)
            expression.write(out, read)
            tensors[expression] = out.to(device)
    return tensors


def to_json(expression: Expression) -> dict[str, Any]:
    """A JSON form of the expression, for the compile cache."""
    if isinstance(expression, CheckpointTensor):
        dtype = str(expression.dtype).removeprefix("torch.")
        return {"source": expression.name, "shape": list(expression.shape), "dtype": dtype}
    if isinstance(expression, Slice):
        return {"slice": to_json(expression.x), "part": [expression.dim, expression.start, expression.stop]}
    if isinstance(expression, Constant):
        return {"constant": list(expression.values), "dtype": str(expression.dtype).removeprefix("torch.")}
    if isinstance(expression, Concat):
        return {"cat": [to_json(part) for part in expression.parts]}
    if isinstance(expression, OnePlus):
        return {"one_plus": to_json(expression.x)}
    if isinstance(expression, Rounded):
        return {"rounded": to_json(expression.x), "dtype": str(expression.dtype).removeprefix("torch.")}
    if isinstance(expression, CausalMask):
        return {"causal_mask": expression.size}
    if isinstance(expression, QuantizedExpression):
        return quantized_to_json(expression)
    return {"inverse_frequencies": [expression.theta, expression.head_dim]}


def from_json(raw: dict[str, Any]) -> Expression:
    """The expression that `to_json` wrote."""
    if "quantized" in raw:
        return quantized_from_json(raw)
    if "source" in raw:
        return CheckpointTensor(raw["source"], tuple(raw["shape"]), getattr(torch, raw["dtype"]))
    if "slice" in raw:
        whole = from_json(raw["slice"])
        assert isinstance(whole, CheckpointTensor | QuantizedExpression)
        return Slice(whole, *raw["part"])
    if "constant" in raw:
        return Constant(tuple(raw["constant"]), getattr(torch, raw["dtype"]))
    if "cat" in raw:
        return Concat(tuple(from_json(part) for part in raw["cat"]))
    if "inverse_frequencies" in raw:
        return InverseFrequencies(*raw["inverse_frequencies"])
    if "causal_mask" in raw:
        return CausalMask(raw["causal_mask"])
    if "rounded" in raw:
        factor = from_json(raw["rounded"])
        assert isinstance(factor, OnePlus)
        return Rounded(factor, getattr(torch, raw["dtype"]))
    return OnePlus(_source(raw["one_plus"]))


def _source(raw: dict[str, Any]) -> CheckpointTensor:
    source = from_json(raw)
    assert isinstance(source, CheckpointTensor)
    return source
