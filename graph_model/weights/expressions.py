"""The weight plan: each weight of a graph is an expression over checkpoint tensors.

Passes rewrite expressions and never see a tensor. Loading evaluates each expression once, straight into the tensor
that the graph will read, so that a checkpoint of size S is loaded in little more than S of memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.numerics import is_finite
from graph_gemma.graph_model.weights.read import Read

_ROWS_AT_A_TIME = 1024
_TYPES: dict[str, type[Expression]] = {}


class Expression(ABC):
    """How a weight is made of the tensors of a checkpoint. Frozen dataclasses: equal expressions are one tensor."""

    finite: ClassVar[bool] = True  # False: infinities are meant

    if TYPE_CHECKING:  # fields of some and properties of others, for whose fields these would be defaults

        @property
        def shape(self) -> tuple[int, ...]: ...

        @property
        def dtype(self) -> torch.dtype: ...

    def __init_subclass__(cls) -> None:
        _TYPES[cls.__name__] = cls

    @abstractmethod
    def write(self, out: Tensor, read: Read) -> None:
        """Compute the weight into `out`, which has its shape and dtype."""

    def write_part(self, out: Tensor, dim: int, start: int, stop: int, read: Read) -> None:
        """Compute the part [start, stop) along `dim` only, reading no more than it needs where that is possible."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        self.write(whole, read)
        out.copy_(whole.narrow(dim, start, stop - start))

    def share(self, dim: int, start: int, stop: int, size: int) -> Expression:
        """What a rank needs of it that has [start, stop) of the `size` rows (dim 0) or columns (dim 1) of a matrix.

        The expression is the matrix, or describes its rows, columns or groups of them, and is cut as the matrix is;
        without columns, it is the same for all of them.
        """
        if dim >= len(self.shape):
            return self
        own = self.shape[dim]
        return Slice(self, dim, start * own // size, stop * own // size)


class RowwiseExpression(Expression):
    """An expression each of whose rows comes from the same row of what it reads: computed a few rows at a time."""

    @abstractmethod
    def write_rows(self, out: Tensor, start: int, stop: int, read: Read) -> None:
        """Compute the rows [start, stop)."""

    def write(self, out: Tensor, read: Read) -> None:
        self.write_part(out, 0, 0, self.shape[0], read)

    def write_part(self, out: Tensor, dim: int, start: int, stop: int, read: Read) -> None:
        if dim == 0:
            for first, last in row_blocks(start, stop):
                self.write_rows(out[first - start : last - start], first, last, read)
            return
        for first, last in row_blocks(0, self.shape[0]):
            rows = torch.empty((last - first, *self.shape[1:]), dtype=self.dtype)
            self.write_rows(rows, first, last, read)
            out[first:last] = rows.narrow(dim, start, stop - start)

    def read_rows(self, name: str, start: int, stop: int, read: Read) -> Tensor:
        """Rows of a checkpoint tensor that has as many as the expression."""
        return read(name) if (start, stop) == (0, self.shape[0]) else read(name, (0, start, stop))


def row_blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in parts: no more of a file than a part's rows is in memory."""
    for first in range(start, stop, _ROWS_AT_A_TIME):
        yield first, min(first + _ROWS_AT_A_TIME, stop)


@dataclass(frozen=True)
class CheckpointTensor(Expression):
    """A checkpoint tensor, cast to `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def write(self, out: Tensor, read: Read) -> None:
        out.copy_(read(self.name).reshape(self.shape))

    def write_part(self, out: Tensor, dim: int, start: int, stop: int, read: Read) -> None:
        out.copy_(read(self.name, (dim, start, stop)).reshape(out.shape))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Slice(Expression):
    """The part [start, stop) of an expression along `dim`; 0 past its end, where a vocabulary's last part may reach."""

    x: Expression
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
        end = max(self.start, min(self.stop, self.x.shape[self.dim]))
        if end < self.stop:
            out.narrow(self.dim, end - self.start, self.stop - end).zero_()
        if end > self.start:
            self.x.write_part(out.narrow(self.dim, 0, end - self.start), self.dim, self.start, end, read)

    def __str__(self) -> str:
        return f"{self.x}[{':, ' * self.dim}{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Constant(Expression):
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
class PaddingMask(Expression):
    """0 for the first `real` of `size` rows of a vocabulary and -inf for the rest: what is added to their logits."""

    size: int
    real: int
    dtype: torch.dtype
    finite: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def write(self, out: Tensor, read: Read) -> None:
        out[: self.real] = 0
        out[self.real :] = -torch.inf

    def __str__(self) -> str:
        return f"padding_mask({self.real} of {self.size})"


@dataclass(frozen=True)
class Concat(Expression):
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
class OnePlus(Expression):
    """(1 + x) * gain in float32: the factor of Gemma's RMSNorm, from the weight in its checkpoint dtype."""

    x: CheckpointTensor
    gain: float = 1.0
    dtype: ClassVar[torch.dtype] = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def write(self, out: Tensor, read: Read) -> None:
        out.copy_(read(self.x.name).to(self.x.dtype)).add_(1.0).mul_(self.gain)

    def __str__(self) -> str:
        return f"1 + float32({self.x})" if self.gain == 1.0 else f"(1 + float32({self.x})) * {self.gain:g}"


@dataclass(frozen=True)
class InverseFrequencies(Expression):
    """theta ** (-2i / head_dim) / factor for i below head_dim / 2: rotary embedding's angles per position, float32."""

    theta: float
    head_dim: int
    factor: float = 1.0  # of linear scaling
    dtype: ClassVar[torch.dtype] = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.head_dim // 2,)

    def write(self, out: Tensor, read: Read) -> None:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        out.copy_(torch.reciprocal(self.theta**exponent) / self.factor)

    def __str__(self) -> str:
        scaled = "" if self.factor == 1.0 else f", factor={self.factor}"
        return f"inverse_frequencies(theta={self.theta}, head_dim={self.head_dim}{scaled})"


@dataclass(frozen=True)
class Rounded(Expression):
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
class CausalMask(Expression):
    """True above the diagonal of [size, size], in bool: what a query may not see."""

    size: int
    dtype: ClassVar[torch.dtype] = torch.bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size)

    def write(self, out: Tensor, read: Read) -> None:
        out.fill_(True).triu_(1)

    def __str__(self) -> str:
        return f"causal_mask({self.size})"


WeightPlan = dict[str, Expression]


def rows_of(expression: Expression, start: int, stop: int) -> Slice:
    """Rows [start, stop) of a tensor, or of a slice of its rows."""
    if isinstance(expression, Slice):
        assert expression.dim == 0, f"{expression} is a slice of columns"
        return Slice(expression.x, 0, expression.start + start, expression.start + stop)
    return Slice(expression, 0, start, stop)


def evaluate(expressions: Iterable[Expression], read: Read, device: torch.device) -> dict[Expression, Tensor]:
    """The tensor of every distinct expression, contiguous on `device`.

    `read` is called once for each use of a CheckpointTensor, or of a part of one. Expressions are computed on the host:
    a device that runs whole graphs only has no kernels for them. Raises UserError if float16 cannot
    hold a weight.
    """
    tensors: dict[Expression, Tensor] = {}
    for expression in expressions:
        if expression not in tensors:
            out = torch.empty(expression.shape, dtype=expression.dtype)
            expression.write(out, read)
            # float32 and bfloat16 reach as far, so that only float16 can be too narrow for what was finite.
            if out.dtype == torch.float16 and expression.finite and not is_finite(out):
                raise UserError(
                    f"The weight {expression} is finite in the checkpoint and beyond 65504, the largest number of "
                    "float16. Give dtype=bfloat16 or dtype=float32, on a device that computes in it."
                )
            tensors[expression] = out.to(device)
    return tensors


def to_json(value: Any) -> Any:
    """A JSON form of an expression, for the compile cache: its type and its fields, which may be expressions."""
    if isinstance(value, Expression):
        own = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
        return {"type": type(value).__name__, **own}
    if isinstance(value, torch.dtype):
        return {"torch": str(value).removeprefix("torch.")}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(raw: Any) -> Any:
    """The expression that `to_json` wrote."""
    if isinstance(raw, list):
        return tuple(from_json(item) for item in raw)
    if not isinstance(raw, dict):
        return raw
    if "torch" in raw:
        return getattr(torch, raw["torch"])
    return _TYPES[raw["type"]](**{name: from_json(value) for name, value in raw.items() if name != "type"})
