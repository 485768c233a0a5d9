"""Hand linear layers on a CPU to oneDNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.linear_kernel import LinearKernel


@dataclass(frozen=True)
class OneDNNLinear(LinearKernel):
    """Original: aten.linear(x, w, bias). After: gemma.onednn_linear(x, w, bias).

    The weight stays as it is, so that the embedding can share it; oneDNN is as fast on it as on a packed copy. For a
    few rows it is much faster than aten.linear, which calls a general matrix product (docs/performance.md).
    """

    name: ClassVar[str] = "onednn_linear"
    after: ClassVar[tuple[str, ...]] = (*LinearKernel.after, "skinny_linear")

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        return graph.insert(ops.onednn_linear, x, weight, bias, at=at)
