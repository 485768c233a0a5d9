"""Fuse the residual addition into the norm behind it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand, require
from graph_gemma.passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class AddRMSNorm(Pass):
    """Residual sum and norm become one op.

    Original: s = residual + x; y = gemma.rms_norm(s, w, eps). After: y, s = gemma.add_rms_norm(x, residual, w, eps).

    Every norm but the first one has an addition before it.
    """

    name: ClassVar[str] = "add_rms_norm"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.norms_after_sums)
    needs: ClassVar[tuple[str, ...]] = ("rms_norm",)
    after: ClassVar[tuple[str, ...]] = ("last_token",)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        norms = graph.calls(ops.rms_norm)
        return [norm for norm in norms if norm.args[0].target != aten.mul.Tensor]  # type: ignore[union-attr]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        total = operand(candidate, 0, aten.add.Tensor)
        residual, x = total.args
        tensors = isinstance(residual, fx.Node) and isinstance(x, fx.Node)
        require(tensors and not total.kwargs, total, "is not a plain sum of two tensors")
        fused = graph.insert(ops.add_rms_norm, x, residual, *candidate.args[1:], at=total)
        normed, summed = (graph.insert(operator.getitem, fused, index, at=total) for index in range(2))
        for node in (fused, normed, summed):
            node.meta["layer"] = candidate.meta["layer"]
        total.replace_all_uses_with(summed)
        candidate.replace_all_uses_with(normed)
