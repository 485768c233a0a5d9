"""Recognize the soft-cap of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.families import definition
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches
from graph_gemma.passes.framework.matches import ONCE
from graph_gemma.passes.recognize import Recognize

aten = torch.ops.aten


@dataclass(frozen=True)
class Softcap(Recognize):
    """Division, tanh and product on the logits of Gemma 2 become one op."""

    name: ClassVar[str] = "softcap"
    matches: ClassVar[Matches] = ONCE
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "paged_attention")
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (aten.tanh.default,)
    op = ops.softcap

    def idle(self, graph: ModelGraph) -> str:
        return "" if graph.config.logit_softcap is not None else "the model has no soft-cap of its logits"

    original = staticmethod(definition.softcap)
