"""Fold the rotary frequencies, which depend on the config only, into a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from graph_model.graph import ModelGraph
from graph_model.weights import InverseFrequencies
from passes.framework.contract import Matches
from passes.framework.matches import per_model
from passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldInvFreq(Recognize):
    """The rotary frequencies become a weight."""

    name: ClassVar[str] = "fold_inv_freq"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotary_bases)
    removes: ClassVar[tuple[object, ...]] = (aten.reciprocal.default, aten.arange.start_step)

    @staticmethod
    def original(theta: float, head_dim: int) -> Tensor:
        return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)

    def replacement(self, graph: ModelGraph, at: fx.Node, *arguments: Any) -> fx.Node:
        return graph.add_weight("inv_freq", InverseFrequencies(*arguments))
