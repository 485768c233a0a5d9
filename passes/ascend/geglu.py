"""Select the gated activation's kernel on Ascend chips."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand
from graph_gemma.passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendGeGlu(Pass):
    """GeGluV2 on the merged projection where gate and up are its halves; elsewhere two ops.

    ::

        gemma.gelu_and_mul(split(x)[0], split(x)[1])  ->  npu_geglu(x, -1, tanh, activate_left)[0]
        gemma.gelu_and_mul(gate, up)                  ->  gelu(gate, tanh) * up
    """

    name: ClassVar[str] = "ascend_geglu"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.gated_activations)
    needs: ClassVar[tuple[str, ...]] = ("gelu_and_mul",)
    after: ClassVar[tuple[str, ...]] = ("last_token",)
    removes: ClassVar[tuple[object, ...]] = (ops.gelu_and_mul,)
    introduces: ClassVar[tuple[str, ...]] = ("npu.npu_geglu",)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        gate, up = operand(candidate, 0), operand(candidate, 1)
        merged = _halves(gate, up)
        if merged is not None:
            pair = graph.insert(torch.ops.npu.npu_geglu.default, merged, -1, 1, True, at=candidate)
            result = graph.insert(operator.getitem, pair, 0, at=candidate)
        else:
            activated = graph.insert(aten.gelu.default, gate, approximate="tanh", at=candidate)
            result = graph.insert(aten.mul.Tensor, activated, up, at=candidate)
        candidate.replace_all_uses_with(result)


def _halves(gate: fx.Node, up: fx.Node) -> fx.Node | None:
    """The tensor whose two halves along the last dimension are `gate` and `up`, or None."""
    if gate.target != operator.getitem or up.target != operator.getitem:
        return None
    split = gate.args[0]
    if not isinstance(split, fx.Node) or split is not up.args[0] or split.target != aten.split_with_sizes.default:
        return None
    merged, sizes = split.args[:2]
    assert isinstance(sizes, (list, tuple))
    is_last = split.args[2] in (-1, len(split.meta["val"][0].shape) - 1)
    equal_halves = len(sizes) == 2 and sizes[0] == sizes[1]
    in_order = (gate.args[1], up.args[1]) == (0, 1)
    return merged if is_last and equal_halves and in_order and isinstance(merged, fx.Node) else None
