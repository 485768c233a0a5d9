"""Recognize the gated activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.passes.framework.contract import Matches
from graph_gemma.passes.framework.matches import per_model
from graph_gemma.passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class GeluAndMul(Recognize):
    """GELU and product become one op."""

    name: ClassVar[str] = "gelu_and_mul"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.gated_activations)
    removes: ClassVar[tuple[object, ...]] = (aten.gelu.default,)
    op = ops.gelu_and_mul

    @staticmethod
    def original(gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up
