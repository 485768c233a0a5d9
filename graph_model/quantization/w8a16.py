"""w8a16: int8 weights per output channel, made at load or stored; activations stay in floating point."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.quantization.scheme import LinearSite
from graph_gemma.graph_model.quantization.weight_scaled import WeightScaledScheme


class W8A16(WeightScaledScheme):
    """y = aten.linear(x, dequantize_weight(w8, scale), bias)."""

    name: ClassVar[str] = "w8a16"
    modelslim: ClassVar[str] = "W8A16"

    def compute(self, linear: LinearSite) -> fx.Node:
        int8, scale = linear.weight("int8"), linear.weight("scale")
        wide = linear.insert(ops.dequantize_weight, int8, scale, linear.dtype)
        rest = () if linear.bias is None else (linear.bias,)
        return linear.insert(torch.ops.aten.linear.default, linear.x, wide, *rest)


SCHEME = W8A16()
