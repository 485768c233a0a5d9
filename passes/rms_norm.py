"""Recognize Gemma's RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import CheckpointTensor, OnePlus
from graph_gemma.passes.framework.contract import Matches, NearMiss
from graph_gemma.passes.framework.matches import per_model
from graph_gemma.passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class RMSNorm(Recognize):
    """Float32 norm arithmetic becomes one op, with its factor 1 + w computed when weights load."""

    name: ClassVar[str] = "rms_norm"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.norms)
    removes: ClassVar[tuple[object, ...]] = (aten.rsqrt.default,)
    op = ops.rms_norm

    @staticmethod
    def original(x: Tensor, w: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
        return (normed * (1.0 + w.float())).to(x.dtype)

    def replacement(self, graph: ModelGraph, at: fx.Node, *arguments: Any) -> fx.Node:
        x, w, eps = arguments
        expression = w.meta.get("expression")
        if not isinstance(expression, CheckpointTensor):
            raise NearMiss(at, f"its factor is 1 + {w.name}, which is not a weight of the checkpoint")
        factor = graph.add_weight(f"{w.name}_factor", OnePlus(expression))
        return super().replacement(graph, at, x, factor, eps)
