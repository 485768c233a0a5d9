"""Hand 16-bit linear layers to products in float32, on CPUs whose instructions know no 16-bit product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.linear_kernel import LinearKernel


@dataclass(frozen=True)
class TiledLinear(LinearKernel):
    """Original: aten.linear(x, w, bias) in 16 bit. After: gemma.tiled_linear(x, w, bias).

    A few megabytes of the weight at a time become float32; the weight stays as it is.
    """

    name: ClassVar[str] = "tiled_linear"

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        return graph.insert(ops.tiled_linear, x, weight, bias, at=at)
