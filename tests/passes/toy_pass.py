"""A toy pass for tests: the sum of the residual stream and a branch, with its operands exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand
from graph_gemma.passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class SwapSums(Pass):
    """Original: residual + x. After: x + residual."""

    name: ClassVar[str] = "swap_sums"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.norms_after_sums)
    after: ClassVar[tuple[str, ...]] = ("last_token",)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.add.Tensor)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        residual, x = operand(candidate, 0), operand(candidate, 1)
        candidate.replace_all_uses_with(graph.insert(aten.add.Tensor, x, residual, at=candidate))
