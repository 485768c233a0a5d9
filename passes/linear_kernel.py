"""What passes have in common that hand linear layers to other kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Expected, Matches, Pass, Tier
from graph_gemma.passes.framework.matches import dequantizes_weights, linear_calls

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


_LINEARS = (aten.linear.default, ops.float32_linear)


@dataclass(frozen=True)
class LeftOver:
    """The floating-point linears of the model that no pass before took and that the pass does not leave to the next."""

    def __call__(self, graph_pass: Pass, graph: ModelGraph) -> Expected:
        candidates = set(graph_pass.candidates(graph))
        left_to_others = sum(node not in candidates for node in graph.calls(*_LINEARS))
        taken = sum(graph.matches.get(cls.name, 0) for cls in LinearKernel.__subclasses__())
        total = linear_calls(graph, quantized=False)
        if dequantizes_weights(graph):
            total += linear_calls(graph, quantized=True)
        taken_by_others = f"other kernels take the {total} linears in floating point"
        reason = taken_by_others if total else "every linear is quantized"
        return Expected(total - taken - left_to_others, reason)


@dataclass(frozen=True)
class LinearKernel(Pass):
    """Base of passes that replace calls of `linears`, (x, w, bias) or (x, w); w stays as it is stored, [out, in]."""

    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = LeftOver()
    after: ClassVar[tuple[str, ...]] = ("last_token", "insert_quantization", "fold_dequantize")
    removes: ClassVar[tuple[object, ...]] = (aten.linear.default,)
    linears: ClassVar[tuple[object, ...]] = (aten.linear.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(*self.linears)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, weight, bias = (*candidate.args, None)[:3]
        assert isinstance(x, fx.Node)
        candidate.replace_all_uses_with(self.kernel(graph, candidate, x, weight, bias))

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        """Insert the kernel's calls before `at`, the linear layer; returns the node of its result."""
        raise NotImplementedError
