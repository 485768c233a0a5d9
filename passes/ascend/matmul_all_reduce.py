"""Join matrix products and all-reduces into the fused kernel of an Ascend chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier, operand, require
from graph_gemma.passes.framework.matches import Counted

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendMatmulAllReduce(Pass):
    """With several ranks on an Atlas 800I A2, in steps of prompts: a matrix product and its all-reduce become one
    kernel.

    MatmulAllReduce sends what it has computed while it computes more.

    Original: gemma.all_reduce(reshape(ascend.linear(x, w))). After: reshape(ascend.matmul_all_reduce(x, w)).

    For steps of prompts: the kernel is not made for decode steps, whose graphs are left alone. Quantized layers keep
    their all-reduce, and so do those whose shares are summed in float32: the kernel sums in 16 bit. The chip
    must have the kernel, which the settings check.
    """

    name: ClassVar[str] = "ascend_matmul_all_reduce"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = Counted(lambda graph: len(_floating_row_parallel(graph)))
    after: ClassVar[tuple[str, ...]] = ("shard_tensor_parallel", "ascend_linear")
    introduces: ClassVar[tuple[str, ...]] = ("ascend.matmul_all_reduce",)

    def idle(self, graph: ModelGraph) -> str:
        if graph.bucket.phase == "decode":
            return "the kernel is not made for decode steps"
        if graph.shard.world_size == 1:
            return "one rank sums nothing"
        if graph.scheme is not None and graph.scheme.exact_sums:
            return "shares are summed in float32 or as integers"
        return "" if _floating_row_parallel(graph) else "every row-parallel linear is quantized"

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        linears = graph.family.linears
        reduces = ((node, linears.get(node.meta["layer"])) for node in graph.calls(ops.all_reduce))
        return [node for node, linear in reduces if linear is not None and linear.split == "row"]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        linear = operand(candidate, 0)
        if linear.target == aten.reshape.default:
            linear = operand(linear, 0, torch.ops.ascend.linear.default)
        elif linear.target != torch.ops.ascend.linear.default:
            raise NearMiss(candidate, f"it sums {linear.name}, which is no product in floating point")
        x, weight, bias = (*linear.args, None)[:3]
        require(bias is None, linear, "it has a bias, which every rank would add")
        require(len(linear.users) == 1, linear, "its share of the sum is read elsewhere")
        result = graph.insert(torch.ops.ascend.matmul_all_reduce.default, x, weight, at=candidate)
        shape = list(candidate.meta["val"].shape)
        if len(shape) != 2:
            result = graph.insert(aten.reshape.default, result, shape, at=candidate)
        candidate.replace_all_uses_with(result)


def _floating_row_parallel(graph: ModelGraph) -> list[str]:
    """The row-parallel linears that are not quantized."""
    quantized = graph.quantization.linears if graph.quantization is not None else ()
    return [path for path, linear in graph.family.linears.items() if linear.split == "row" and path not in quantized]
