"""Hand 16-bit linear layers to kernels of our own, on CPUs whose instructions know no 16-bit product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.contract import Pass, Tier

aten = torch.ops.aten

# From here on converting the weight to float32 costs less than multiplying in the slower kernel.
_MOST_FEW_ROWS = 16


@dataclass(frozen=True)
class NativeLinear(Pass):
    """Original: aten.linear(x, w, bias) in 16 bit. After: gemma.few_rows_linear or gemma.tiled_linear, by x's rows.

    The weight stays as it is. Measurements: docs/performance.md.
    """

    name: ClassVar[str] = "native_linear"
    tier: ClassVar[Tier] = Tier.TOLERANT
    removes: ClassVar[tuple[object, ...]] = (aten.linear.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.linear.default)

    def expected_matches(self, graph: ModelGraph) -> int:
        return len(self.candidates(graph))

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, weight, bias = (*candidate.args, None)[:3]
        assert isinstance(x, fx.Node)
        value = x.meta["val"]
        few = value.numel() // value.shape[-1] <= _MOST_FEW_ROWS
        result = graph.insert(ops.few_rows_linear if few else ops.tiled_linear, x, weight, bias, at=candidate)
        candidate.replace_all_uses_with(result)
