"""Hand linear layers on a CPU to oneDNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.contract import Pass, Tier

aten = torch.ops.aten


@dataclass(frozen=True)
class OneDNNLinear(Pass):
    """Original: aten.linear(x, w, bias). After: gemma.onednn_linear(x, w, bias).

    The weight stays as it is, so that the embedding can share it; oneDNN is as fast on it as on a packed copy. For a
    few rows it is much faster than aten.linear, which calls a general matrix product (docs/performance.md).
    """

    name: ClassVar[str] = "onednn_linear"
    tier: ClassVar[Tier] = Tier.TOLERANT
    removes: ClassVar[tuple[object, ...]] = (aten.linear.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.linear.default)

    def expected_matches(self, graph: ModelGraph) -> int:
        return len(self.candidates(graph))

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, weight, bias = (*candidate.args, None)[:3]
        result = graph.insert(ops.onednn_linear, x, weight, bias, at=candidate)
        candidate.replace_all_uses_with(result)
