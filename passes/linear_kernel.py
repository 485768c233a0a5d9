"""What passes have in common that hand linear layers to other kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model.graph import ModelGraph
from passes.framework.contract import Pass, Tier

aten = torch.ops.aten

# From here on unpacking the weight once costs less than multiplying as it is unpacked.
_MOST_SKINNY_ROWS = 16


def is_skinny(x: fx.Node) -> bool:
    """Whether x has so few rows that a linear layer's time is that of reading its weight."""
    value = x.meta["val"]
    return value.numel() // value.shape[-1] <= _MOST_SKINNY_ROWS


def as_rows(graph: ModelGraph, x: fx.Node, at: fx.Node) -> fx.Node:
    """x [..., size] as a matrix, which is all that some kernels take; what is inserted comes before `at`."""
    value = x.meta["val"]
    return x if value.dim() == 2 else graph.insert(aten.reshape.default, x, [-1, value.shape[-1]], at=at)


def shaped_like(graph: ModelGraph, at: fx.Node, matrix: fx.Node) -> fx.Node:
    """A kernel's matrix in the shape of `at`, the call that it replaces."""
    shape = list(at.meta["val"].shape)
    return matrix if len(shape) == 2 else graph.insert(aten.reshape.default, matrix, shape, at=at)


@dataclass(frozen=True)
class LinearKernel(Pass):
    """Base of passes that replace calls of `linears`, (x, w, bias) or (x, w); w stays as it is stored, [out, in]."""

    tier: ClassVar[Tier] = Tier.TOLERANT
    removes: ClassVar[tuple[object, ...]] = (aten.linear.default,)
    linears: ClassVar[tuple[object, ...]] = (aten.linear.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(*self.linears)

    def expected_matches(self, graph: ModelGraph) -> int:
        return len(self.candidates(graph))

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, weight, bias = (*candidate.args, None)[:3]
        assert isinstance(x, fx.Node)
        candidate.replace_all_uses_with(self.kernel(graph, candidate, x, weight, bias))

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        """Insert the kernel's calls before `at`, the linear layer; returns the node of its result."""
        raise NotImplementedError
