"""Recognize the gated activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.framework.contract import Matches, Pass, Tier, operand, require, sole_user
from passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class GeluAndMul(Pass):
    """Original: gelu(gate, approximate=tanh) * up. After: gemma.gelu_and_mul(gate, up)."""

    name: ClassVar[str] = "gelu_and_mul"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.gated_activations)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    removes: ClassVar[tuple[object, ...]] = (aten.gelu.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.gelu.default)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        form = candidate.kwargs.get("approximate", "none")
        require(form == "tanh", candidate, f"uses the {form!r} form of GELU, Gemma's is 'tanh'")
        product = sole_user(candidate, aten.mul.Tensor)
        require(product.args[0] is candidate, product, "the activated tensor is not the first factor")
        result = graph.insert(ops.gelu_and_mul, operand(candidate, 0), operand(product, 1), at=product)
        product.replace_all_uses_with(result)
