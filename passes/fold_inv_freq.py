"""Fold the rotary frequencies, which depend on the config only, into a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model.graph import ModelGraph
from graph_model.weights import InverseFrequencies
from passes.framework.contract import Matches, NearMiss, Pass, Tier, argument, require
from passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldInvFreq(Pass):
    """Original: reciprocal(theta ** (arange(0, head_dim, 2) / head_dim)). After: a weight, inv_freq."""

    name: ClassVar[str] = "fold_inv_freq"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotary_bases)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    removes: ClassVar[tuple[object, ...]] = (aten.reciprocal.default, aten.arange.start_step)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.reciprocal.default)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        power = argument(candidate, 0, aten.pow.Scalar)
        theta = power.args[0]
        if not isinstance(theta, float):
            raise NearMiss(power, f"the base {theta!r} is not a constant")
        exponent = argument(power, 1, aten.div.Tensor)
        steps = argument(exponent, 0, aten.arange.start_step)
        head_dim = exponent.args[1]
        if not isinstance(head_dim, int):
            raise NearMiss(exponent, f"divides by {head_dim!r}, expected head_dim")
        require(steps.args == (0, head_dim, 2), steps, f"counts {steps.args}, expected (0, {head_dim}, 2)")
        weight = graph.add_weight("inv_freq", InverseFrequencies(theta, head_dim))
        candidate.replace_all_uses_with(weight)
