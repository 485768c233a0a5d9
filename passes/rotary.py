"""Recognize rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.passes.framework.contract import Matches
from graph_gemma.passes.framework.matches import per_model
from graph_gemma.passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class Rotary(Recognize):
    """Slices, negation and concatenation become one rotary op."""

    name: ClassVar[str] = "rotary"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotations)
    removes: ClassVar[tuple[object, ...]] = (aten.neg.default,)
    op = ops.rotary

    @staticmethod
    def original(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin
