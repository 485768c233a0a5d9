"""Hand 16-bit linear layers to products in float32: where the CPU has no 16-bit ones, or sums are not to be rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.linear_kernel import LinearKernel

aten = torch.ops.aten


@dataclass(frozen=True)
class TiledLinear(LinearKernel):
    """All linear layers that other passes left.

    ::

        aten.linear(x, w, bias)      ->  gemma.tiled_linear(x, w, bias, dtype of x)
        gemma.float32_linear(x, w)   ->  gemma.tiled_linear(x, w, None, float32)

    A few megabytes of the weight at a time become float32; the weight stays as it is.
    """

    name: ClassVar[str] = "tiled_linear"
    after: ClassVar[tuple[str, ...]] = (*LinearKernel.after, "skinny_linear", "onednn_linear")
    removes: ClassVar[tuple[object, ...]] = (aten.linear.default, ops.float32_linear)
    linears: ClassVar[tuple[object, ...]] = removes

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        return graph.insert(ops.tiled_linear, x, weight, bias, at.meta["val"].dtype, at=at)
