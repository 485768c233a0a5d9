"""Select the linear layers' kernel on Ascend chips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model.graph import ModelGraph
from passes.contract import Pass, Tier

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendLinear(Pass):
    """A matrix product that reads its weight as it is stored, [out, in]: nothing is transposed at run time.

    Original: aten.linear(x, w, bias). After: reshape(ascend.linear(reshape(x, [rows, in]), w, bias)).
    """

    name: ClassVar[str] = "ascend_linear"
    tier: ClassVar[Tier] = Tier.TOLERANT
    removes: ClassVar[tuple[object, ...]] = (aten.linear.default,)
    introduces: ClassVar[tuple[str, ...]] = ("ascend.linear",)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.linear.default)

    def expected_matches(self, graph: ModelGraph) -> int:
        return len(self.candidates(graph))

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, weight, bias = (*candidate.args, None)[:3]
        assert isinstance(x, fx.Node)
        shape = list(candidate.meta["val"].shape)
        if len(shape) != 2:
            x = graph.insert(aten.reshape.default, x, [-1, x.meta["val"].shape[-1]], at=candidate)
        result = graph.insert(torch.ops.ascend.linear.default, x, weight, bias, at=candidate)
        if len(shape) != 2:
            result = graph.insert(aten.reshape.default, result, shape, at=candidate)
        candidate.replace_all_uses_with(result)
