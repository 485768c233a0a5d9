"""Recognize Gemma's RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from graph_model.weights import CheckpointTensor, OnePlus
from passes.framework.contract import Matches, NearMiss, Pass, Tier, argument, operand, require, sole_user
from passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class RMSNorm(Pass):
    """Float32 norm arithmetic becomes one op; its factor 1 + w is computed once, in float32, when weights load.

    Original::

        x32 = to(x, float32)
        y = to(x32 * rsqrt(mean(x32 ** 2, -1, keepdim) + eps) * (to(w, float32) + 1.0), dtype of x)

    After::

        y = gemma.rms_norm(x, weight, eps)      # weight = 1 + float32(w)
    """

    name: ClassVar[str] = "rms_norm"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.norms)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    removes: ClassVar[tuple[object, ...]] = (aten.rsqrt.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.rsqrt.default)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        shifted = argument(candidate, 0, aten.add.Tensor)
        eps = shifted.args[1]
        require(isinstance(eps, float), shifted, f"eps is {eps!r}, expected a constant")
        mean = argument(shifted, 0, aten.mean.dim)
        require(mean.args[1:] == ([-1], True), mean, f"reduces {mean.args[1:]}, expected the last dimension, kept")
        square = argument(mean, 0, aten.pow.Tensor_Scalar)
        require(square.args[1] == 2, square, f"the power is {square.args[1]}, expected 2")
        x32 = operand(square, 0)
        normed = sole_user(candidate, aten.mul.Tensor)
        require(normed.args == (x32, candidate), normed, "does not scale the tensor that was squared")
        scaled = sole_user(normed, aten.mul.Tensor)
        weight = self._factor(graph, scaled)
        x, output = x32, scaled
        if graph.dtype != torch.float32:
            is_cast = x32.target == aten.to.dtype and x32.args[1] == torch.float32
            require(is_cast, x32, "the norm is not computed in float32")
            x = operand(x32, 0)
            output = sole_user(scaled, aten.to.dtype)
            require(output.args[1] == graph.dtype, output, f"rounds to {output.args[1]}, expected {graph.dtype}")
        result = graph.insert(ops.rms_norm, x, weight, eps, at=output)
        output.replace_all_uses_with(result)

    def _factor(self, graph: ModelGraph, scaled: fx.Node) -> fx.Node:
        """The weight 1 + float32(w) for the factor of `scaled`."""
        factor = argument(scaled, 1, aten.add.Tensor)
        require(factor.args[1] == 1.0, factor, f"adds {factor.args[1]!r} to the weight, Gemma's norm adds 1.0")
        weight = operand(factor, 0)
        if graph.dtype != torch.float32:
            weight = operand(argument(factor, 0, aten.to.dtype), 0)
        expression = weight.meta.get("expression")
        if not isinstance(expression, CheckpointTensor):
            raise NearMiss(factor, "its weight is not a weight of the checkpoint")
        return graph.add_weight(weight.name + "_factor", OnePlus(expression))
