"""Select the norm kernels of an Ascend chip."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import OnePlus, Rounded
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier, describe_target, expression, operand
from graph_gemma.passes.framework.matches import Counted

aten = torch.ops.aten

_QUANTIZING = ("npu.npu_add_rms_norm_quant", "npu.npu_add_rms_norm_dynamic_quant")


@dataclass(frozen=True)
class AscendNorm(Pass):
    """Replaces every canonical norm, with the residual addition in front of it where there is one."""

    removes: ClassVar[tuple[object, ...]] = (ops.rms_norm, ops.add_rms_norm)
    matches: ClassVar[Matches] = Counted(lambda graph: graph.family.counts.norms - _quantizing(graph))
    needs: ClassVar[tuple[str, ...]] = ("rms_norm",)
    after: ClassVar[tuple[str, ...]] = ("add_rms_norm", "fold_quantize", "ascend_quant")


@dataclass(frozen=True)
class AscendNormExact(AscendNorm):
    """The norm is rounded once, as Gemma's is; the addition stays an op of its own.

    ::

        gemma.rms_norm(x, 1 + w, eps)  ->  ascend.gemma_rms_norm(x, w, eps)                       where the chip has it
                                       ->  to(npu_rms_norm(to(x, float32), 1 + w, eps), dtype)    elsewhere
        gemma.rms_norm(x, (1 + w) * gain, eps)
                                       ->  npu_rms_norm(x, (1 + w) * gain, eps)                   the factor in float32
        gemma.add_rms_norm(x, r, ...)  ->  s = x + r, and the norm of s
    """

    chip: Chip
    name: ClassVar[str] = "ascend_norm_exact"
    tier: ClassVar[Tier] = Tier.EXACT
    introduces: ClassVar[tuple[str, ...]] = ("ascend.gemma_rms_norm", "npu.npu_rms_norm")

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        weight, eps = operand(candidate, len(candidate.args) - 2), candidate.args[-1]
        factor = _one_plus(candidate, len(candidate.args) - 2)
        fused = candidate.target == ops.add_rms_norm
        x = operand(candidate, 0)
        if fused:
            x = graph.insert(aten.add.Tensor, *candidate.args[:2], at=candidate)
        if self.chip.has("GemmaRmsNorm") and factor.gain != 1.0:
            pair = graph.insert(torch.ops.npu.npu_rms_norm.default, x, weight, eps, at=candidate)
            normed = graph.insert(operator.getitem, pair, 0, at=candidate)
        elif self.chip.has("GemmaRmsNorm"):
            raw = graph.add_weight(weight.name.removesuffix("_factor"), factor.x)
            normed = graph.insert(torch.ops.ascend.gemma_rms_norm.default, x, raw, eps, at=candidate)
        else:
            wide = graph.insert(aten.to.dtype, x, torch.float32, at=candidate)
            pair = graph.insert(torch.ops.npu.npu_rms_norm.default, wide, weight, eps, at=candidate)
            normed = graph.insert(operator.getitem, pair, 0, at=candidate)
            normed = graph.insert(aten.to.dtype, normed, graph.dtype, at=candidate)
        if fused:
            _replace_items(candidate, {0: normed, 1: x})
        else:
            candidate.replace_all_uses_with(normed)


@dataclass(frozen=True)
class AscendNormFused(AscendNorm):
    """Addition and norm are one kernel, whose factor and intermediate values are rounded to 16 bit.

    ::

        gemma.rms_norm(x, 1 + w, eps)         ->  npu_rms_norm(x, round(1 + w), eps)
        gemma.add_rms_norm(x, r, 1 + w, eps)  ->  npu_add_rms_norm(x, r, round(1 + w), eps)
    """

    name: ClassVar[str] = "ascend_norm_fused"
    tier: ClassVar[Tier] = Tier.TOLERANT
    introduces: ClassVar[tuple[str, ...]] = ("npu.npu_rms_norm", "npu.npu_add_rms_norm")

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        rounded, eps = rounded_factor(graph, candidate, len(candidate.args) - 2), candidate.args[-1]
        if candidate.target == ops.add_rms_norm:
            x, residual = candidate.args[:2]
            fused = graph.insert(torch.ops.npu.npu_add_rms_norm.default, x, residual, rounded, eps, at=candidate)
            items = {index: graph.insert(operator.getitem, fused, at_, at=candidate) for index, at_ in ((0, 0), (1, 2))}
            _replace_items(candidate, items)
        else:
            pair = graph.insert(torch.ops.npu.npu_rms_norm.default, candidate.args[0], rounded, eps, at=candidate)
            candidate.replace_all_uses_with(graph.insert(operator.getitem, pair, 0, at=candidate))


def _quantizing(graph: ModelGraph) -> int:
    """Norms that quantize, whose kernels are selected before."""
    return sum(describe_target(node.target) in _QUANTIZING for node in graph.calls())


def rounded_factor(graph: ModelGraph, norm: fx.Node, index: int) -> fx.Node:
    """The factor of a norm, its argument `index`, in the graph's dtype. Raises NearMiss."""
    name = f"{operand(norm, index).name}_rounded"
    return graph.add_weight(name, Rounded(_one_plus(norm, index), graph.dtype))


def _one_plus(norm: fx.Node, index: int) -> OnePlus:
    factor = expression(norm, index)
    if not isinstance(factor, OnePlus):
        raise NearMiss(norm, f"its factor is {factor}, expected 1 + a weight of the checkpoint")
    return factor


def _replace_items(node: fx.Node, items: dict[int, fx.Node]) -> None:
    """Replace node[index] by items[index]."""
    for user in list(node.users):
        index = user.args[1]
        assert user.target == operator.getitem
        assert isinstance(index, int)
        user.replace_all_uses_with(items[index])
