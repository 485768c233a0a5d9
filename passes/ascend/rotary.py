"""Select the rotary kernel of an Ascend chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.ascend.ops.rotary import fused_rotary
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand
from graph_gemma.passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendRotary(Pass):
    """RotaryMul where the chip takes the model's head_dim; elsewhere slices, negation, products and a sum.

    ::

        gemma.rotary(x, cos, sin)  ->  npu_rotary_mul(x, cos, sin)
                                   ->  x * cos + cat(-x[..., d/2:], x[..., :d/2]) * sin
    """

    chip: Chip
    name: ClassVar[str] = "ascend_rotary"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotations)
    needs: ClassVar[tuple[str, ...]] = ("rotary",)
    removes: ClassVar[tuple[object, ...]] = (ops.rotary,)
    introduces: ClassVar[tuple[str, ...]] = ("npu.npu_rotary_mul",)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, cos, sin = (operand(candidate, index) for index in range(3))
        size = x.meta["val"].shape[-1]
        if fused_rotary(self.chip, size):
            result = graph.insert(torch.ops.npu.npu_rotary_mul.default, x, cos, sin, at=candidate)
        else:
            first = graph.insert(aten.slice.Tensor, x, -1, 0, size // 2, at=candidate)
            second = graph.insert(aten.slice.Tensor, x, -1, size // 2, size, at=candidate)
            negated = graph.insert(aten.neg.default, second, at=candidate)
            rotated = graph.insert(aten.cat.default, [negated, first], -1, at=candidate)
            by_cos = graph.insert(aten.mul.Tensor, x, cos, at=candidate)
            by_sin = graph.insert(aten.mul.Tensor, rotated, sin, at=candidate)
            result = graph.insert(aten.add.Tensor, by_cos, by_sin, at=candidate)
        candidate.replace_all_uses_with(result)
