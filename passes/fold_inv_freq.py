"""Fold the rotary frequencies, which depend on the config only, into a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import InverseFrequencies
from graph_gemma.passes.framework.contract import Matches, NearMiss, sole_user
from graph_gemma.passes.framework.matches import per_model
from graph_gemma.passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldInvFreq(Recognize):
    """The rotary frequencies become a weight.

    With linear scaling the definition divides what `original` gives by a factor, which becomes part of the weight.
    """

    name: ClassVar[str] = "fold_inv_freq"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotary_bases)
    removes: ClassVar[tuple[object, ...]] = (aten.reciprocal.default, aten.arange.start_step)

    @staticmethod
    def original(theta: float, head_dim: int) -> Tensor:
        return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)

    def replacement(self, graph: ModelGraph, at: fx.Node, *arguments: Any) -> fx.Node:
        known = sum(isinstance(each, InverseFrequencies) for each in graph.weight_plan.values())
        name = f"inv_freq_{known}" if known else "inv_freq"
        if not any(user.target == aten.div.Tensor for user in at.users):
            return graph.add_weight(name, InverseFrequencies(*arguments))
        division = sole_user(at, aten.div.Tensor)
        factor = division.args[1]
        if not isinstance(factor, float):
            raise NearMiss(division, f"divides by {factor!r}, expected the factor of linear scaling")
        theta, head_dim = arguments
        weight = graph.add_weight(name, InverseFrequencies(theta, head_dim, factor))
        division.replace_all_uses_with(weight)
        return weight
