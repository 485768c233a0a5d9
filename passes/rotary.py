"""Recognize rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.framework.contract import Matches, Pass, Tier, argument, operand, require, sole_user
from passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class Rotary(Pass):
    """Original: x * cos + cat(-x[..., d/2:], x[..., :d/2]) * sin. After: gemma.rotary(x, cos, sin)."""

    name: ClassVar[str] = "rotary"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotations)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    removes: ClassVar[tuple[object, ...]] = (aten.neg.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.neg.default)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        second = argument(candidate, 0, aten.slice.Tensor)
        rotated = sole_user(candidate, aten.cat.default)
        parts = rotated.args[0]
        assert isinstance(parts, (list, tuple))
        require(len(parts) == 2 and parts[0] is candidate, rotated, "the negated half does not come first")
        first = parts[1]
        assert isinstance(first, fx.Node)
        require(first.target == aten.slice.Tensor, rotated, "the other half is not a slice")
        x = operand(second, 0)
        size = x.meta["val"].shape[-1]
        halves = (first.args, second.args)
        expected = ((x, -1, 0, size // 2), (x, -1, size // 2, size))
        require(halves == expected, rotated, "its parts are not the two halves of one tensor's last dimension")
        by_sin = sole_user(rotated, aten.mul.Tensor)
        output = sole_user(by_sin, aten.add.Tensor)
        by_cos = argument(output, 0, aten.mul.Tensor)
        require(by_cos.args[0] is x, by_cos, "the cosine does not scale the tensor that is rotated")
        result = graph.insert(ops.rotary, x, operand(by_cos, 1), operand(by_sin, 1), at=output)
        output.replace_all_uses_with(result)
