"""Select the linear layers' kernels on Ascend chips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import Constant
from graph_gemma.passes.framework.contract import operand, require, sole_user
from graph_gemma.passes.linear_kernel import LinearKernel, as_rows, shaped_like

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendLinear(LinearKernel):
    """Matrix products that read their weight as it is stored, [out, in]: nothing is transposed at run time.

    ::

        aten.linear(x, w, bias)     ->  reshape(ascend.linear(reshape(x, [rows, in]), w, bias))
        gemma.float32_linear(x, w)  ->  reshape(ascend.gemm(reshape(x, [rows, in]), w, 1, zeros)), which adds to zeros
        all_reduce(float32_linear(x, w)) [+ b], rounded; where the chip has no such product
                                    ->  all_reduce(reshape(ascend.linear(...))) [+ b]
    """

    chip: Chip

    name: ClassVar[str] = "ascend_linear"
    introduces: ClassVar[tuple[str, ...]] = ("ascend.linear", "ascend.gemm", "aten.full")
    linears: ClassVar[tuple[object, ...]] = (aten.linear.default, ops.float32_linear)
    removes: ClassVar[tuple[object, ...]] = linears

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        if candidate.target == aten.linear.default:
            super().rewrite(graph, candidate)
        elif self.chip.has("GemmV2"):
            _share_in_float32(graph, candidate)
        else:
            self._share_rounded(graph, candidate)

    def _share_rounded(self, graph: ModelGraph, linear: fx.Node) -> None:
        joined = sole_user(linear, ops.all_reduce)
        (last,) = joined.users
        share = self.kernel(graph, linear, operand(linear, 0), linear.args[1], None)
        result = graph.insert(ops.all_reduce, share, at=joined)
        if last.target == aten.add.Tensor:
            result = graph.insert(aten.add.Tensor, result, last.args[1], at=last)
            (last,) = last.users
        require(last.target == aten.to.dtype, last, "a sum in float32 is not rounded")
        last.replace_all_uses_with(result)

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        result = graph.insert(torch.ops.ascend.linear.default, as_rows(graph, x, at), weight, bias, at=at)
        return shaped_like(graph, at, result)


def _share_in_float32(graph: ModelGraph, linear: fx.Node) -> None:
    x, weight = operand(linear, 0), operand(linear, 1)
    rows = as_rows(graph, x, linear)
    zeros = _zeros(graph, [rows.meta["val"].shape[0], weight.meta["val"].shape[0]])
    one = graph.add_weight(f"one_{graph.dtype}".replace("torch.", ""), Constant((1,), graph.dtype))
    result = graph.insert(torch.ops.ascend.gemm.default, rows, weight, one, zeros, at=linear)
    linear.replace_all_uses_with(shaped_like(graph, linear, result))


def _zeros(graph: ModelGraph, shape: list[int]) -> fx.Node:
    """float32 zeros, which all layers share."""
    for node in graph.calls(aten.full.default):
        if node.args == (shape, 0.0) and node.meta["val"].dtype == torch.float32:
            return node
    first = next(iter(graph.calls()))
    zeros = graph.insert(aten.full.default, shape, 0.0, dtype=torch.float32, device=torch.device("cpu"), at=first)
    zeros.meta["layer"] = ""
    return zeros
