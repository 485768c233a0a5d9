"""Hand 16-bit linear layers of few rows on a CPU to a kernel of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.linear_kernel import LinearKernel, is_skinny

aten = torch.ops.aten


@dataclass(frozen=True)
class SkinnyLinear(LinearKernel):
    """Linear layers of up to 16 rows in 16 bit.

    ::

        aten.linear(x, w, bias)      ->  gemma.skinny_linear(x, w, bias, dtype of x)
        gemma.float32_linear(x, w)   ->  gemma.skinny_linear(x, w, None, float32)

    Its time is that of reading the weight, which stays as it is. Other linear layers are left to the passes behind it.
    """

    name: ClassVar[str] = "skinny_linear"
    removes: ClassVar[tuple[object, ...]] = ()
    linears: ClassVar[tuple[object, ...]] = (aten.linear.default, ops.float32_linear)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return [node for node in super().candidates(graph) if is_skinny(node.all_input_nodes[0])]

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        return graph.insert(ops.skinny_linear, x, weight, bias, at.meta["val"].dtype, at=at)
