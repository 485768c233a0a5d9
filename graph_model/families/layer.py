"""The parts of a decoder layer: attention, norms and linears, with the names of their modules.

Names are paths within the layer, so that two layers that are alike are equal objects. A module's tensors are called
PATH.weight and PATH.bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

# How the ranks of a tensor-parallel group share a weight [rows, columns]:
# "column": each rank has an equal share of the rows, so of the output channels (column-parallel);
# "kv": the same by key-value heads, of which neighbouring ranks have the same one where there are too few;
# "row": an equal share of the columns, so of the input channels, and the ranks sum their results (row-parallel);
# "vocab": an equal share of the vocabulary's rows.
Split = Literal["column", "kv", "row", "vocab"]
# What the linears of one input are for: attention's projections and its output, the MLP's two halves and its output.
Role = Literal["qkv", "o", "gate_up", "down", "head"]


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding of a layer: angle i of position p is p / factor * base ** (-2i / size)."""

    base: float  # theta
    size: int  # numbers of a head that are rotated
    factor: float = 1.0  # of linear scaling


@dataclass(frozen=True)
class Attention:
    """Causal attention of a layer."""

    path: str  # its module
    heads: int  # query heads
    kv_heads: int  # heads of keys and of values; divides `heads`
    head_dim: int
    softmax_scale: float  # factor on the scores
    rotary: Rotary
    window: int | None = None  # keys that a query sees, its own included; None: all
    softcap: float | None = None  # scores become cap * tanh(score / cap); None: they do not
    rotations: int = 2  # applications of rotary embedding: to queries and to keys


@dataclass(frozen=True)
class Norm:
    """An RMSNorm: x / rms(x) times its factor."""

    path: str
    size: int
    eps: float
    one_plus: bool  # the factor is 1 + weight, not the weight
    # What it normalizes: the residual stream, a branch before it is added to the stream, or heads.
    reads: Literal["stream", "branch", "heads"] = "stream"

    @property
    def weight(self) -> str:
        """Its tensor's name."""
        return f"{self.path}.weight"


@dataclass(frozen=True)
class Linear:
    """A linear layer, whose weight is [rows, columns]: output and input channels."""

    path: str
    rows: int
    columns: int
    split: Split
    bias: bool = False

    @property
    def weight(self) -> str:
        """Its weight's name."""
        return f"{self.path}.weight"

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes."""
        bias = {f"{self.path}.bias": (self.rows,)} if self.bias else {}
        return {self.weight: (self.rows, self.columns), **bias}


@dataclass(frozen=True)
class Upstream:
    """The linear before another, whose input channels are its output channels, times something without a scale."""

    path: str
    # The input channels are [a, b, c], of which the b come from one channel of `path`: heads that share a value head.
    groups: tuple[int, int, int]


@dataclass(frozen=True)
class LinearGroup:
    """The linears that read one tensor. They may be merged, so all are quantized or none, with one scale of input."""

    role: Role
    linears: tuple[Linear, ...]  # in the order in which they are merged; the first owns the input's scale
    merged: str = ""  # the path of the merged linear; "": there is one linear
    norm: str = ""  # the path of the norm that makes the input, which nothing else reads; "": no norm does
    upstream: Upstream | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(linear.path for linear in self.linears)

    def inside(self, path: str) -> LinearGroup:
        """The group with the paths that it has in a model whose layer is at `path`."""

        def whole(name: str) -> str:
            return f"{path}.{name}" if name else ""

        return LinearGroup(
            self.role,
            tuple(replace(linear, path=whole(linear.path)) for linear in self.linears),
            whole(self.merged),
            whole(self.norm),
            self.upstream and replace(self.upstream, path=whole(self.upstream.path)),
        )


@dataclass(frozen=True)
class Layer:
    """A decoder layer."""

    attention: Attention
    parts: tuple[Norm | LinearGroup, ...]  # in the order of the model's parameters

    @property
    def norms(self) -> tuple[Norm, ...]:
        return tuple(part for part in self.parts if isinstance(part, Norm))

    @property
    def groups(self) -> tuple[LinearGroup, ...]:
        return tuple(part for part in self.parts if isinstance(part, LinearGroup))

    @property
    def branches(self) -> tuple[str, ...]:
        """The modules whose outputs are added to the residual stream: norms, or linears where branches have none."""
        norms = tuple(norm.path for norm in self.norms if norm.reads == "branch")
        return norms or tuple(group.paths[0] for group in self.groups if group.role in ("o", "down"))

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(linear for group in self.groups for linear in group.linears)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all its parameters, in their order."""
        found: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            if isinstance(part, Norm):
                found[part.weight] = (part.size,)
            else:
                for linear in part.linears:
                    found.update(linear.tensors)
        return found
