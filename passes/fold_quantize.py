"""Fold quantize into the norm before it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand, require
from graph_gemma.passes.framework.integers import SAME, IntegerBound
from graph_gemma.passes.framework.matches import Counted, is_quantized


@dataclass(frozen=True)
class FoldQuantize(Pass):
    """Quantize becomes part of the norm before it.

    ::

        quantize(rms_norm(x, w, eps), scale, offset)            ->  rms_norm_quantize(x, w, scale, offset, eps)
        quantize(add_rms_norm(x, r, w, eps)[0], scale, offset)  ->  add_rms_norm_quantize(x, r, w, ..., eps)[0]
    """

    name: ClassVar[str] = "fold_quantize"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = Counted(
        lambda graph: sum(bool(group.norm) and is_quantized(graph, group) for group in graph.family.groups),
        none="no linear that is quantized reads a norm",
    )
    needs: ClassVar[tuple[str, ...]] = ("rms_norm",)
    after: ClassVar[tuple[str, ...]] = ("insert_quantization", "add_rms_norm")

    def idle(self, graph: ModelGraph) -> str:
        static = graph.scheme is not None and graph.scheme.activations == "per_tensor"
        return "" if static else "no activation has a static scale"

    def integer_bound(self, graph: ModelGraph) -> IntegerBound:
        return SAME

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return [node for node in graph.calls(ops.quantize) if _norm(node) is not None]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        normed = operand(candidate, 0)
        norm = _norm(candidate)
        assert norm is not None
        require(len(normed.users) == 1, normed, "the norm is read by others than the quantize")
        *inputs, weight, eps = norm.args
        fused = len(inputs) == 2
        target = ops.add_rms_norm_quantize if fused else ops.rms_norm_quantize
        result = graph.insert(target, *inputs, weight, *candidate.args[1:], eps, at=norm)
        if not fused:
            candidate.replace_all_uses_with(result)
            return
        quantized, total = (graph.insert(operator.getitem, result, index, at=norm) for index in range(2))
        candidate.replace_all_uses_with(quantized)
        for user in list(norm.users):
            if user.args[1] == 1:
                user.replace_all_uses_with(total)


def _norm(quantize: fx.Node) -> fx.Node | None:
    """The norm whose result is quantized, or None."""
    source = operand(quantize, 0)
    if source.target == operator.getitem and source.args[1] == 0:
        source = operand(source, 0)
        return source if source.target == ops.add_rms_norm else None
    return source if source.target == ops.rms_norm else None
