"""Hand 16-bit linear layers to kernels of our own, on CPUs whose instructions know no 16-bit product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.linear_kernel import LinearKernel, is_few_rows


@dataclass(frozen=True)
class NativeLinear(LinearKernel):
    """Original: aten.linear(x, w, bias) in 16 bit. After: gemma.few_rows_linear or gemma.tiled_linear, by x's rows.

    The weight stays as it is. Measurements: docs/performance.md.
    """

    name: ClassVar[str] = "native_linear"

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        return graph.insert(ops.few_rows_linear if is_few_rows(x) else ops.tiled_linear, x, weight, bias, at=at)
