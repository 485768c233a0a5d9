"""Hand quantized linear layers on a CPU to kernels of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand
from graph_gemma.passes.framework.matches import Counted, dequantizes_weights, linear_calls, not_quantized
from graph_gemma.passes.linear_kernel import is_skinny

aten = torch.ops.aten


@dataclass(frozen=True)
class NativeInt8Linear(Pass):
    """Kernels that read the int8 weight once, as it is.

    ::

        int8_weight_linear(x, w8, s, b), few rows   ->  skinny_int8_weight_linear(x, w8, s, b)
        int8_weight_linear(x, w8, s, b), many rows  ->  tiled_int8_weight_linear(x, w8, s, b)
        int8_linear(q, w8, b32, s, rows, b, dtype)  ->  native_int8_linear(q, w8, b32, s, rows, b, dtype)
        the same with int_mm and many rows          ->  dequantize(aten._int_mm(q, w8.T) + b32, s, rows, b, dtype)
        int_linear(q, w8, b32)                      ->  native_int_linear(q, w8, b32), or aten._int_mm(q, w8.T) + b32

    int_mm: the CPU has instructions for sums of int8 products, which torch's matrix product uses; it is exact, too.
    """

    name: ClassVar[str] = "native_int8_linear"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = Counted(lambda graph: _int8_products(graph), none="fold_dequantize is off")
    after: ClassVar[tuple[str, ...]] = ("insert_quantization", "fold_dequantize")
    removes: ClassVar[tuple[object, ...]] = (ops.int8_linear, ops.int8_weight_linear, ops.int_linear)
    introduces: ClassVar[tuple[str, ...]] = ("aten._int_mm",)

    int_mm: bool = False

    def idle(self, graph: ModelGraph) -> str:
        return not_quantized(graph)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        few = is_skinny(operand(candidate, 0))
        if candidate.target == ops.int8_weight_linear:
            target = ops.skinny_int8_weight_linear if few else ops.tiled_int8_weight_linear
            result = graph.insert(target, *candidate.args, at=candidate)
        elif few or not self.int_mm:
            target = ops.native_int_linear if candidate.target == ops.int_linear else ops.native_int8_linear
            result = graph.insert(target, *candidate.args, at=candidate)
        else:
            result = _matrix_product(graph, candidate)
        candidate.replace_all_uses_with(result)


def _int8_products(graph: ModelGraph) -> int:
    """Products of int8 weights."""
    return 0 if dequantizes_weights(graph) else linear_calls(graph, quantized=True)


def _matrix_product(graph: ModelGraph, linear: fx.Node) -> fx.Node:
    q, weight, int_bias, *scales = linear.args
    assert isinstance(q, fx.Node)
    rows = graph.insert(aten.reshape.default, q, [-1, q.meta["val"].shape[-1]], at=linear)
    transposed = graph.insert(aten.transpose.int, weight, 0, 1, at=linear)
    product = graph.insert(aten._int_mm.default, rows, transposed, at=linear)
    total = graph.insert(aten.reshape.default, product, list(linear.meta["val"].shape), at=linear)
    if int_bias is not None:
        total = graph.insert(aten.add.Tensor, total, int_bias, at=linear)
    return graph.insert(ops.dequantize, total, *scales, at=linear) if scales else total
