"""Write out the soft-cap of logits, for which Ascend chips have no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand
from graph_gemma.passes.framework.matches import ONCE

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendSoftcap(Pass):
    """Original: gemma.softcap(x, cap). After: tanh(x / cap) * cap, each step rounded to x's dtype."""

    name: ClassVar[str] = "ascend_softcap"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = ONCE
    after: ClassVar[tuple[str, ...]] = ("softcap",)
    removes: ClassVar[tuple[object, ...]] = (ops.softcap,)
    introduces: ClassVar[tuple[str, ...]] = ("aten.tanh", "aten.div.Tensor")

    def idle(self, graph: ModelGraph) -> str:
        return "" if graph.config.logit_softcap is not None else "the model has no soft-cap of its logits"

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        cap = candidate.args[1]
        assert isinstance(cap, float)
        candidate.replace_all_uses_with(write_softcap(graph, operand(candidate, 0), cap, at=candidate))


def write_softcap(graph: ModelGraph, x: fx.Node, cap: float, at: fx.Node) -> fx.Node:
    """tanh(x / cap) * cap, inserted before `at`."""
    bounded = graph.insert(aten.tanh.default, graph.insert(aten.div.Tensor, x, cap, at=at), at=at)
    return graph.insert(aten.mul.Tensor, bounded, cap, at=at)
