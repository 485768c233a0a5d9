"""Quantizing activations: Quantize, with a given scale and offset, and DynamicQuant, with a scale per row."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ops.op import AscendOp
from graph_gemma.graph_model.ascend.work import per_element


def to_int8(x: Tensor) -> Tensor:
    """Rounded half to even and clipped."""
    return x.round().clamp(-128, 127).to(torch.int8)


def by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of a float32 x as int8 with the scale max|row| / 127, which is given too."""
    scale = x.abs().amax(-1) / 127.0
    return to_int8(x / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]), scale


def _quantize(
    x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: object, axis: int = 1, div_mode: bool = True
) -> Tensor:
    assert div_mode
    scaled = x.float() / scales
    return to_int8(scaled if zero_points is None else scaled + zero_points.float())


def _dynamic_quant(x: Tensor, **unused: None) -> tuple[Tensor, Tensor]:
    return by_rows(x.float())


OPS = (
    AscendOp("npu::npu_quantize", "Quantize", work=per_element(1), cpu=_quantize),
    AscendOp("npu::npu_dynamic_quant", "DynamicQuant", work=per_element(4), cpu=_dynamic_quant),
)
