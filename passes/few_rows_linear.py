"""Hand 16-bit linear layers of few rows on a CPU to a kernel of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.linear_kernel import LinearKernel, is_few_rows


@dataclass(frozen=True)
class FewRowsLinear(LinearKernel):
    """Original: aten.linear(x, w, bias) in 16 bit, x of up to 16 rows. After: gemma.few_rows_linear(x, w, bias).

    Its time is that of reading the weight, which stays as it is. Other linear layers are left to the passes behind it.
    """

    name: ClassVar[str] = "few_rows_linear"
    removes: ClassVar[tuple[object, ...]] = ()

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return [node for node in super().candidates(graph) if is_few_rows(node.all_input_nodes[0])]

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        return graph.insert(ops.few_rows_linear, x, weight, bias, at=at)
