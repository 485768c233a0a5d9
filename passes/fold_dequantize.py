"""Fold dequantize into the linear that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand, sole_user
from graph_gemma.passes.framework.integers import SAME, IntegerBound
from graph_gemma.passes.framework.matches import Counted, not_quantized

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldDequantize(Pass):
    """Dequantize becomes part of the integer linear.

    ::

        dequantize(int_linear(q, w8, int_bias), scale, row_scale, bias)  ->  int8_linear(q, w8, int_bias, scale, ...)
        aten.linear(x, dequantize_weight(w8, scale), bias)               ->  int8_weight_linear(x, w8, scale, bias)

    The first is exact; the second scales sums instead of weights. Integers that ranks sum stay apart from their scale.
    """

    name: ClassVar[str] = "fold_dequantize"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = Counted(
        lambda graph: graph.matches.get("insert_quantization", 0) - _summed_by_ranks(graph),
        none="ranks sum the integers of every quantized linear",
    )
    after: ClassVar[tuple[str, ...]] = ("insert_quantization",)
    removes: ClassVar[tuple[object, ...]] = (ops.dequantize_weight,)

    def idle(self, graph: ModelGraph) -> str:
        return not_quantized(graph)

    def integer_bound(self, graph: ModelGraph) -> IntegerBound:
        return SAME

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        found = graph.calls(ops.dequantize, ops.dequantize_weight)
        return [node for node in found if operand(node, 0).target != ops.all_reduce]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        if candidate.target == ops.dequantize:
            total = operand(candidate, 0, ops.int_linear)
            sole_user(total, ops.dequantize)
            result = graph.insert(ops.int8_linear, *total.args, *candidate.args[1:], at=candidate)
            candidate.replace_all_uses_with(result)
            return
        linear = sole_user(candidate, aten.linear.default)
        weight, scale = candidate.args[:2]
        bias = linear.args[2] if len(linear.args) > 2 else None
        result = graph.insert(ops.int8_weight_linear, linear.args[0], weight, scale, bias, at=linear)
        linear.replace_all_uses_with(result)


def _summed_by_ranks(graph: ModelGraph) -> int:
    """Linears whose integers ranks sum."""
    if graph.shard.world_size == 1 or graph.scheme is None or not graph.scheme.exact_sums or graph.quantization is None:
        return 0
    return sum(graph.family.linears[path].split == "row" for path in graph.quantization.linears)
