"""Join matrix products and all-reduces into the fused kernel of an Ascend chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from passes.framework.contract import NearMiss, Pass, Tier, argument, operand, require
from passes.shard_tensor_parallel import ROW_PARALLEL

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendMatmulAllReduce(Pass):
    """A row-parallel layer as one kernel, MatmulAllReduce, which sends what it has computed while it computes more.

    Original: gemma.all_reduce(reshape(ascend.linear(x, w))). After: reshape(ascend.matmul_all_reduce(x, w)).

    For steps of prompts: the kernel is not made for decode steps, whose graphs are left alone. Quantized layers keep
    their all-reduce, and so do those whose shares are summed in float32: the kernel sums in 16 bit. The chip
    must have the kernel, which the settings check.
    """

    name: ClassVar[str] = "ascend_matmul_all_reduce"
    tier: ClassVar[Tier] = Tier.TOLERANT
    introduces: ClassVar[tuple[str, ...]] = ("ascend.matmul_all_reduce",)

    def applies(self, graph: ModelGraph) -> bool:
        return graph.bucket.phase != "decode"

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return [node for node in graph.calls(ops.all_reduce) if node.meta["layer"].endswith(ROW_PARALLEL)]

    def expected_matches(self, graph: ModelGraph) -> int:
        if graph.shard.world_size == 1 or (graph.scheme is not None and graph.scheme.exact_sums):
            return 0
        quantized = graph.quantization.linears if graph.quantization is not None else ()
        return 2 * graph.config.num_hidden_layers - sum(path.endswith(ROW_PARALLEL) for path in quantized)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        linear = operand(candidate, 0)
        if linear.target == aten.reshape.default:
            linear = argument(linear, 0, torch.ops.ascend.linear.default)
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
