"""w8a8_dynamic: int8 weights per output channel, made at load or stored; activations per token, at run time."""

from __future__ import annotations

import operator
from typing import ClassVar, Literal

from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.quantization.scheme import LinearSite
from graph_gemma.graph_model.quantization.weight_scaled import WeightScaledScheme


class W8A8Dynamic(WeightScaledScheme):
    """q, s = quantize_rows(x); y = dequantize(int_linear(q, w8, None), scale, s, bias)."""

    name: ClassVar[str] = "w8a8_dynamic"
    modelslim: ClassVar[str] = "W8A8_DYNAMIC"
    activations: ClassVar[Literal["per_tensor", "per_token"] | None] = "per_token"
    ascend_ops: ClassVar[tuple[str, ...]] = ("DynamicQuant",)

    def compute(self, linear: LinearSite) -> fx.Node:
        int8 = linear.weight("int8")
        pair = linear.quantize_input(ops.quantize_rows)
        q, row_scale = (linear.insert(operator.getitem, pair, index) for index in range(2))
        total = linear.insert(ops.int_linear, q, int8, None)
        return linear.insert(ops.dequantize, total, linear.weight("scale"), row_scale, linear.bias, linear.dtype)


SCHEME = W8A8Dynamic()
