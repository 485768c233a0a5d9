"""Select the quantizing kernels of an Ascend chip."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.ascend.ops.quant_matmul import MAX_SIZE, sums_integers
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import CheckpointTensor, Concat, Constant, Expression, Slice, rows_of
from graph_gemma.passes.ascend.norm import rounded_factor
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier, operand
from graph_gemma.passes.framework.integers import IntegerBound
from graph_gemma.passes.framework.matches import EveryCandidate, linear_calls, not_quantized
from graph_gemma.passes.linear_kernel import as_rows, shaped_like

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendQuant(Pass):
    """Quantize, norm and quantize, and quantized products; weights are read as they are stored, [out, in].

    ::

        gemma.quantize(x, s, z)                      ->  npu_quantize(x, s, z), which divides
        gemma.quantize_rows(x)                       ->  npu_dynamic_quant(x); where x is an add_rms_norm that nothing
                                                         else reads, npu_add_rms_norm_dynamic_quant in place of both
        gemma.add_rms_norm_quantize(x, r, 1 + w, …)  ->  npu_add_rms_norm_quant(x, r, round(1 + w), s, z)
        gemma.rms_norm_quantize(x, 1 + w, …)         ->  npu_quantize(gemma.rms_norm(x, 1 + w), s, z)
        gemma.int8_linear(q, w8, b32, s, rows, b)    ->  ascend.quant_matmul(q, w8, s, b32, rows) [+ b]
        dequantize(all_reduce(int_linear(…)), s)     ->  ascend.dequantize(all_reduce(ascend.quant_matmul(…)), s), in
                                                         int32; where products give none, all_reduce of quant_matmul
        gemma.int8_weight_linear(x, w8, s, b)        ->  ascend.weight_quant_matmul(x, w8, round(s)) [+ b]; the parts of
                                                         a weight of more than 65,535 rows, side by side

    Without int32 products each rank rounds its share of the sum to 16 bit. With float16 results and without row scales
    s is packed in int64, which cuts 13 bits off. Norm and quantize rounds 1 + w to 16 bit: a value at the edge of two
    integers may get the other one.
    """

    chip: Chip

    name: ClassVar[str] = "ascend_quant"
    tier: ClassVar[Tier] = Tier.QUANTIZING
    matches: ClassVar[Matches] = EveryCandidate(
        (ops.int8_linear, ops.int8_weight_linear, ops.int_linear), lambda graph: linear_calls(graph, quantized=True)
    )
    after: ClassVar[tuple[str, ...]] = ("insert_quantization", "fold_dequantize", "fold_quantize")
    budget: ClassVar[float] = 0.3
    removes: ClassVar[tuple[object, ...]] = (
        ops.quantize,
        ops.quantize_rows,
        ops.rms_norm_quantize,
        ops.add_rms_norm_quantize,
        ops.int8_linear,
        ops.int8_weight_linear,
        ops.int_linear,
        ops.dequantize,
        ops.dequantize_weight,
    )
    introduces: ClassVar[tuple[str, ...]] = (
        "npu.npu_quantize",
        "npu.npu_dynamic_quant",
        "npu.npu_add_rms_norm_quant",
        "npu.npu_add_rms_norm_dynamic_quant",
        "ascend.quant_matmul",
        "ascend.dequantize",
        "ascend.weight_quant_matmul",
        "aten.cat",
    )

    def idle(self, graph: ModelGraph) -> str:
        return not_quantized(graph)

    def integer_bound(self, graph: ModelGraph) -> IntegerBound:
        """A norm that is not rounded before it is quantized differs from one that is by most in bfloat16."""
        per_token = graph.scheme is not None and graph.scheme.activations == "per_token"
        return IntegerBound(1, 0.2 if per_token and graph.dtype == torch.bfloat16 else 0.05)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        if candidate.target == ops.quantize:
            candidate.replace_all_uses_with(_quantize(graph, operand(candidate, 0), candidate))
        elif candidate.target == ops.rms_norm_quantize:
            x, weight, *_, eps = candidate.args
            normed = graph.insert(ops.rms_norm, x, weight, eps, at=candidate)
            candidate.replace_all_uses_with(_quantize(graph, normed, candidate))
        elif candidate.target == ops.quantize_rows:
            _quantize_rows(graph, candidate)
        elif candidate.target == ops.add_rms_norm_quantize:
            _norm_and_quantize(graph, candidate)
        elif candidate.target == ops.int8_linear:
            _int8_linear(graph, candidate)
        elif candidate.target == ops.int8_weight_linear:
            _int8_weight_linear(graph, candidate)
        elif candidate.target == ops.int_linear and any(user.target == ops.all_reduce for user in candidate.users):
            self._share_of_integers(graph, candidate)
        elif candidate.target == ops.dequantize and operand(candidate, 0).target == ops.all_reduce:
            self._sum_of_integers(graph, candidate)
        else:
            raise NearMiss(candidate, "the chip has no such op by itself; leave passes.fold_dequantize enabled")

    def _share_of_integers(self, graph: ModelGraph, candidate: fx.Node) -> None:
        if not sums_integers(self.chip):
            return  # `_sum_of_integers` replaces it
        q, weight, int_bias = candidate.args
        assert isinstance(q, fx.Node)
        # Whether the kernel scales integers that it gives out is not documented, so its scale is 1.
        one = graph.add_weight("one", Constant((1,), torch.float32))
        rows = as_rows(graph, q, candidate)
        target = torch.ops.ascend.quant_matmul.default
        result = graph.insert(target, rows, weight, one, int_bias, None, torch.int32, at=candidate)
        _finish(graph, candidate, result, None)

    def _sum_of_integers(self, graph: ModelGraph, candidate: fx.Node) -> None:
        joined = operand(candidate, 0, ops.all_reduce)
        scale, row_scale, bias, dtype = candidate.args[1:]
        if sums_integers(self.chip):
            rows = as_rows(graph, joined, candidate)
            result = graph.insert(torch.ops.ascend.dequantize.default, rows, scale, dtype, at=candidate)
            _finish(graph, candidate, result, None)
            return
        total = operand(joined, 0, ops.int_linear)
        share = graph.insert(ops.int8_linear, *total.args, scale, row_scale, bias, dtype, at=candidate)
        candidate.replace_all_uses_with(graph.insert(ops.all_reduce, share, at=candidate))
        _int8_linear(graph, share)


def _quantize(graph: ModelGraph, x: fx.Node, quantize: fx.Node) -> fx.Node:
    scale, offset = _scale_and_offset(graph, quantize)
    return graph.insert(torch.ops.npu.npu_quantize.default, x, scale, offset, torch.qint8, -1, at=quantize)


def _quantize_rows(graph: ModelGraph, candidate: fx.Node) -> None:
    source = operand(candidate, 0)
    norm = operand(source, 0) if source.target == operator.getitem else source
    if norm.target != ops.add_rms_norm or source.args[1] != 0 or len(source.users) > 1:
        pair = graph.insert(torch.ops.npu.npu_dynamic_quant.default, source, at=candidate)
        candidate.replace_all_uses_with(pair)
        return
    rounded = rounded_factor(graph, norm, 2)
    target = torch.ops.npu.npu_add_rms_norm_dynamic_quant.default
    options = {"epsilon": norm.args[-1], "output_mask": [True, False]}
    fused = graph.insert(target, *norm.args[:2], rounded, **options, at=norm)
    _replace_items(graph, candidate, fused, {0: 0, 1: 3})
    _replace_items(graph, norm, fused, {1: 2})


def _replace_items(graph: ModelGraph, node: fx.Node, fused: fx.Node, places: dict[int, int]) -> None:
    """Replace node[i] by fused[places[i]]."""
    for user in list(node.users):
        index = user.args[1]
        if isinstance(index, int) and index in places:
            user.replace_all_uses_with(graph.insert(operator.getitem, fused, places[index], at=fused.next))


def _norm_and_quantize(graph: ModelGraph, candidate: fx.Node) -> None:
    x, residual = (operand(candidate, index) for index in range(2))
    rounded = rounded_factor(graph, candidate, 2)
    scale, offset = _scale_and_offset(graph, candidate)
    target = torch.ops.npu.npu_add_rms_norm_quant.default
    fused = graph.insert(target, x, residual, rounded, scale, offset, epsilon=candidate.args[-1], at=candidate)
    _replace_items(graph, candidate, fused, {0: 0, 1: 2})


def _scale_and_offset(graph: ModelGraph, quantize: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The float32 scale of a quantize, and its offset as int32."""
    arguments = [
        a for a in quantize.args if isinstance(a, fx.Node) and isinstance(a.meta.get("expression"), CheckpointTensor)
    ]
    scale, offset = arguments[-2:]
    expression = replace(offset.meta["expression"], dtype=torch.int32)
    return scale, graph.add_weight(f"{offset.name}_int32", expression)


def _int8_linear(graph: ModelGraph, candidate: fx.Node) -> None:
    q, weight, int_bias, scale, row_scale, bias, dtype = candidate.args
    assert isinstance(q, fx.Node)
    assert isinstance(scale, fx.Node)
    if dtype == torch.float16 and row_scale is None:
        packed = _map(scale.meta["expression"], lambda part: replace(part, packed=True))
        scale = graph.add_weight(f"{scale.name}_packed", packed)
    if isinstance(row_scale, fx.Node) and len(row_scale.meta["val"].shape) != 1:
        row_scale = graph.insert(aten.reshape.default, row_scale, [-1], at=candidate)
    rows = as_rows(graph, q, candidate)
    target = torch.ops.ascend.quant_matmul.default
    result = graph.insert(target, rows, weight, scale, int_bias, row_scale, dtype, at=candidate)
    _finish(graph, candidate, result, bias)


def _int8_weight_linear(graph: ModelGraph, candidate: fx.Node) -> None:
    x, weight, scale, bias = candidate.args
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    assert isinstance(scale, fx.Node)
    rounded = _map(scale.meta["expression"], lambda part: replace(part, dtype=graph.dtype))
    narrow = graph.add_weight(f"{scale.name}_rounded", rounded)
    rows = as_rows(graph, x, candidate)
    target = torch.ops.ascend.weight_quant_matmul.default
    parts = [graph.insert(target, rows, *part, at=candidate) for part in _parts(graph, weight, narrow)]
    result = parts[0] if len(parts) == 1 else graph.insert(aten.cat.default, parts, -1, at=candidate)
    _finish(graph, candidate, result, bias)


def _parts(graph: ModelGraph, *weights: fx.Node) -> list[tuple[fx.Node, ...]]:
    """Rows of the weights, in as few, about equal parts as the kernel takes."""
    rows = weights[0].meta["val"].shape[0]
    size = -(-rows // -(-rows // MAX_SIZE))
    if size == rows:
        return [weights]
    return [
        tuple(
            graph.add_weight(f"{weight.name}_rows_{start}", rows_of(weight.meta["expression"], start, stop))
            for weight in weights
        )
        for start, stop in pairwise([*range(0, rows, size), rows])
    ]


def _finish(graph: ModelGraph, candidate: fx.Node, result: fx.Node, bias: object) -> None:
    if bias is not None:
        result = graph.insert(aten.add.Tensor, result, bias, at=candidate)
    candidate.replace_all_uses_with(shaped_like(graph, candidate, result))


def _map(expression: Expression, change: Callable[[Any], Expression]) -> Expression:
    """The expression with its scales changed, part by part."""
    if isinstance(expression, Concat):
        return Concat(tuple(_map(part, change) for part in expression.parts))
    if isinstance(expression, Slice):
        return replace(expression, x=_map(expression.x, change))
    return change(expression)
