"""Take a row's only token without moving it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand
from graph_gemma.passes.framework.matches import EveryCandidate

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendLastToken(Pass):
    """Original: select(x, 1, 0) of x [batch, 1, size]; it would be lowered to a gather. After: reshape(x)."""

    name: ClassVar[str] = "ascend_last_token"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = EveryCandidate((aten.select.int,))
    after: ClassVar[tuple[str, ...]] = ("last_token",)

    def idle(self, graph: ModelGraph) -> str:
        return "" if graph.bucket.phase == "decode" else "tokens are taken by a gather in steps of prompts"

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return [node for node in graph.calls(aten.select.int) if operand(node, 0).meta["val"].shape[1] == 1]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        shape = list(candidate.meta["val"].shape)
        reshaped = graph.insert(aten.reshape.default, operand(candidate, 0), shape, at=candidate)
        candidate.replace_all_uses_with(reshaped)
