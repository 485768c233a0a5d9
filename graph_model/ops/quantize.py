"""Quantization to int8: quantize, multiply in integers, dequantize; and the fused forms of these.

All quantize by division: q = round(x / scale + offset) in float32, ties to even, saturating at -128 and 127. Scales and
offsets are float32. Sums of products are exact int32; what comes out of them is scaled in float32 and rounded once.
Jacob et al., arXiv:1712.05877; the order of rounding and offset is that of Ascend's Quantize.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op

# Products of int8 are at most 2**14: float32 holds the sum of as many as these exactly, in any order.
_EXACT_TERMS = 1024


@canonical_op("quantize(Tensor x, Tensor scale, Tensor offset) -> Tensor")
def quantize(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """int8 of x / scale + offset: one scale and one offset, float32 [1], for the whole tensor."""
    return _to_int8(x.float() / scale + offset)


@canonical_op("quantize_rows(Tensor x) -> (Tensor, Tensor)")
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 of x / s, s) with s = max|x| / 127 of each row: [..., size] -> int8 [..., size], float32 [...].

    A row of zeros has the scale 0 and the values 0. As Ascend's DynamicQuant.
    """
    wide = x.float()
    scale = wide.abs().amax(-1) / 127.0
    return _to_int8(wide / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)), scale


@canonical_op("int_linear(Tensor q, Tensor weight, Tensor? bias) -> Tensor")
def int_linear(q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """q @ weight.T + bias in exact integers: q int8 [..., in], weight int8 [out, in], bias int32 [out] -> int32."""
    total = None
    for start in range(0, weight.shape[1], _EXACT_TERMS):
        stop = min(start + _EXACT_TERMS, weight.shape[1])
        part = torch.matmul(q[..., start:stop].float(), weight[:, start:stop].float().t()).to(torch.int32)
        total = part if total is None else total + part
    assert total is not None
    return total if bias is None else total + bias


@canonical_op(
    "dequantize(Tensor x, Tensor scale, Tensor? row_scale, Tensor? bias, ScalarType dtype) -> Tensor",
)
def dequantize(x: Tensor, scale: Tensor, row_scale: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x * scale [* row_scale] [+ bias] in float32, rounded once to `dtype`.

    x int32 [..., out]; scale float32 [out]; row_scale float32 [...]; bias [out] of any float dtype.
    """
    result = x.float() * scale
    if row_scale is not None:
        result = result * row_scale.unsqueeze(-1)
    return (result if bias is None else result + bias.float()).to(dtype)


@canonical_op("dequantize_weight(Tensor weight, Tensor scale, ScalarType dtype) -> Tensor")
def dequantize_weight(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """weight * scale per output channel, rounded once: int8 [out, in], float32 [out] -> [out, in] in `dtype`."""
    return (weight.float() * scale[:, None]).to(dtype)


@canonical_op(
    "int8_linear(Tensor q, Tensor weight, Tensor? int_bias, Tensor scale, Tensor? row_scale, Tensor? bias,"
    " ScalarType dtype) -> Tensor"
)
def int8_linear(
    q: Tensor,
    weight: Tensor,
    int_bias: Tensor | None,
    scale: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """dequantize(int_linear(q, weight, int_bias), scale, row_scale, bias, dtype), the same numbers."""
    total = torch.ops.gemma.int_linear(q, weight, int_bias)
    return torch.ops.gemma.dequantize(total, scale, row_scale, bias, dtype)


@canonical_op("int8_weight_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
def int8_weight_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(x @ weight.T) * scale + bias in x's dtype: x [..., in] float, weight int8 [out, in], scale float32 [out].

    The product is rounded to x's dtype before it is scaled in float32, and the result once more.
    """
    result = torch.matmul(x, weight.to(x.dtype).t()).float() * scale
    return (result if bias is None else result + bias.float()).to(x.dtype)


@canonical_op("rms_norm_quantize(Tensor x, Tensor weight, Tensor scale, Tensor offset, float eps) -> Tensor")
def rms_norm_quantize(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor, eps: float) -> Tensor:
    """quantize(rms_norm(x, weight, eps), scale, offset), the same numbers."""
    return torch.ops.gemma.quantize(torch.ops.gemma.rms_norm(x, weight, eps), scale, offset)


@canonical_op(
    "add_rms_norm_quantize(Tensor x, Tensor residual, Tensor weight, Tensor scale, Tensor offset, float eps)"
    " -> (Tensor, Tensor)"
)
def add_rms_norm_quantize(
    x: Tensor, residual: Tensor, weight: Tensor, scale: Tensor, offset: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(quantize(y, scale, offset), s) for y, s = add_rms_norm(x, residual, weight, eps), the same numbers."""
    normed, total = torch.ops.gemma.add_rms_norm(x, residual, weight, eps)
    return torch.ops.gemma.quantize(normed, scale, offset), total


def _to_int8(x: Tensor) -> Tensor:
    return x.round().clamp(-128, 127).to(torch.int8)
