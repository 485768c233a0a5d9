"""Select the linear layers' kernel on Ascend chips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model.graph import ModelGraph
from passes.linear_kernel import LinearKernel

aten = torch.ops.aten


@dataclass(frozen=True)
class AscendLinear(LinearKernel):
    """A matrix product that reads its weight as it is stored, [out, in]: nothing is transposed at run time.

    Original: aten.linear(x, w, bias). After: reshape(ascend.linear(reshape(x, [rows, in]), w, bias)).
    """

    name: ClassVar[str] = "ascend_linear"
    introduces: ClassVar[tuple[str, ...]] = ("ascend.linear",)

    def kernel(self, graph: ModelGraph, at: fx.Node, x: fx.Node, weight: object, bias: object) -> fx.Node:
        shape = list(at.meta["val"].shape)
        if len(shape) != 2:
            x = graph.insert(aten.reshape.default, x, [-1, x.meta["val"].shape[-1]], at=at)
        result = graph.insert(torch.ops.ascend.linear.default, x, weight, bias, at=at)
        return result if len(shape) == 2 else graph.insert(aten.reshape.default, result, shape, at=at)
