"""Quantization to int8 and quantized matrix products.

Integers are exact; every scaling is in fp32 and rounded once. A value is rounded to the nearest integer, ties to even,
and saturates at -128 and 127. Source: prototypes; ops-nn quant/ascend_quant_v2, norm/add_rms_norm_quant,
matmul/quant_batch_matmul_v3 and their op documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    FLOATS,
    ge_dtype,
    normal_dim,
    require,
    require_dtype,
    require_same_dtype,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

_INT8 = 2  # GE's number of int8


@ge_op("AscendQuantV2")
def ascend_quant_v2(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    sqrt_mode: bool = False,
    round_mode: str = "round",
    dst_type: int = _INT8,
    axis: int = -1,
) -> Tensor:
    """int8 of x * scale + offset; scale and offset have x's dtype and one element or the size of the last axis."""
    require((sqrt_mode, round_mode, dst_type) == (False, "round", _INT8), "AscendQuantV2 other than rounding to int8")
    require(axis in (-1, x.dim() - 1), f"axis {axis}; the interpreter knows the last")
    require_dtype("x", x, *FLOATS)
    require_same_dtype(x=x, scale=scale, offset=offset)
    scaled = x.float() * scale.float()
    return _to_int8(scaled if offset is None else scaled + offset.float())


@ge_op("Quantize")
def quantize(x: Tensor, scales: Tensor, zero_points: Tensor | None = None, *, dtype: str, axis: int = 1) -> Tensor:
    """int8 of x / scales + zero_points; both lie along `axis` of x, or are one number.

    torchair unsqueezes them to x's rank, and so they broadcast.
    """
    require(dtype == "torch.qint8", f"dtype {dtype!r}; the interpreter knows torch.qint8")
    require_dtype("x", x, *FLOATS)
    require_dtype("scales", scales, torch.float32, torch.bfloat16)
    dim = normal_dim(axis, x.dim())
    for name, values in (("scales", scales), ("zero_points", zero_points)):
        if values is not None and values.numel() != 1:
            along = [1] * x.dim()
            along[dim] = x.shape[dim]
            shape = [1] * (x.dim() - values.dim()) + list(values.shape)
            require(shape == along, f"{name} {list(values.shape)} along axis {axis} of {list(x.shape)}")
    scaled = x.float() / scales.float()
    return _to_int8(scaled if zero_points is None else scaled + zero_points.float())


@ge_op("DynamicQuant")
def dynamic_quant(x: Tensor, smooth_scales: Tensor | None = None, *, dst_type: int = _INT8) -> tuple[Tensor, Tensor]:
    """int8 of x / s and s, the row's largest |x| / 127 in fp32; smooth_scales multiply x first.

    A quotient that lies within fp32 rounding of a tie may go to the other side on the chip: one unit.
    """
    require(dst_type == _INT8, f"DynamicQuant to {ge_dtype(dst_type)}")
    require_dtype("x", x, torch.float16, torch.bfloat16)
    return _quantize_rows(x.float() if smooth_scales is None else x.float() * smooth_scales.float())


@ge_op("AddRmsNormQuant")
def add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int = _INT8,
) -> tuple[Tensor, Tensor, Tensor]:
    """The RMS norm of x1 + x2, times gamma, quantized: / scales1 (div_mode) or * scales1, + zero_points1.

    Outputs y1, y2 (not computed without scales2: zeros here) and the sum, rounded. Rounding: fp16 rounds the sum,
    x * rstd and its product with gamma; bf16 none of them. Scales of one element (per tensor): none in either, and
    division multiplies by the reciprocal. Source: add_rms_norm_quant_kernel.h.
    """
    require(axis == -1 and dst_type == _INT8, f"axis {axis}, dst_type {dst_type}")
    require_dtype("x1", x1, torch.float16, torch.bfloat16)
    require_same_dtype(x1=x1, x2=x2, gamma=gamma)
    per_tensor = scales1.numel() == 1
    wide = x1.float() + x2.float()
    total = wide.to(x1.dtype)
    rounds = x1.dtype is torch.float16 and not per_tensor
    if rounds:
        wide = total.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    normed = (normed.half() * gamma).float() if rounds else normed * gamma.float()
    if per_tensor:
        require(div_mode, "per-tensor scales with div_mode off")
        normed = normed * (1.0 / scales1.float())
    else:
        normed = normed / scales1.float() if div_mode else normed * scales1.float()
    if zero_points1 is not None:
        normed = normed + zero_points1.float()
    y1 = _to_int8(normed)
    return y1, torch.zeros_like(y1), total


@ge_op("QuantBatchMatmulV3")
def quant_batch_matmul_v3(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    *,
    dtype: int,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    group_size: int = 0,
) -> Tensor:
    """(x1 @ x2 + bias) * scale * pertoken_scale: int8 inputs, int32 accumulation and bias, fp16, bf16 or int32 output.

    scale is fp32 or bf16, per column or one; or the int64 that TransQuantParamV2 makes, which fp16 output without
    pertoken_scale needs. pertoken_scale fp32 has one value per row. int32 output is x1 @ x2 + bias; the documents do
    not say whether it is scaled, so the scale must be 1. int8 output (offset) is not known here.
    """
    require(offset is None and group_size == 0, "QuantBatchMatmulV3 with an offset or groups")
    output = ge_dtype(dtype)
    known = (torch.float16, torch.bfloat16, torch.int32)
    require(output in known, f"output dtype {output}; the interpreter knows 16-bit floats and int32")
    require_dtype("x1", x1, torch.int8)
    require_dtype("x2", x2, torch.int8)
    packed = scale.dtype in (torch.int64, torch.uint64)
    if output is torch.float16:
        require(packed or pertoken_scale is not None, "fp16 output needs an int64 scale")
    # Sums of products of int8 are exact in float64.
    product = (x1.mT if transpose_x1 else x1).double() @ (x2.mT if transpose_x2 else x2).double()
    if bias is not None:
        require_dtype("bias", bias, torch.int32)
        product = product + bias.double()
    require(bool((product.abs() < 2**31).all()), "the int32 accumulator overflows")
    if output is torch.int32:
        require(pertoken_scale is None and bool((scale == 1).all()), "int32 output with a scale")
        return product.to(torch.int32)
    result = product.float() * (unpack_scale(scale) if packed else scale.float())
    if pertoken_scale is not None:
        require_dtype("pertoken_scale", pertoken_scale, torch.float32)
        result = result * pertoken_scale[..., None]
    return result.to(output)


@ge_op("DequantBias")
def dequant_bias(
    x: Tensor,
    weight_scale: Tensor,
    activate_scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    output_dtype: int,
) -> Tensor:
    """x * weight_scale in fp32, rounded once: x int32 [m, n], weight_scale fp32 or bf16 [n], fp16 or bf16 output.

    Source: prototype; ops-nn quant/dequant_bias and its op document.
    """
    require(activate_scale is None and bias is None, "DequantBias with an activate_scale or a bias")
    output = ge_dtype(output_dtype)
    require(output in (torch.float16, torch.bfloat16), f"output dtype {output}; DequantBias gives 16-bit floats")
    require_dtype("x", x, torch.int32)
    require_dtype("weight_scale", weight_scale, torch.float32, torch.bfloat16)
    require(
        x.dim() == 2 and weight_scale.shape == x.shape[1:], f"{list(weight_scale.shape)} scales for {list(x.shape)}"
    )
    return (x.float() * weight_scale.float()).to(output)


@ge_op("WeightQuantBatchMatmulV2")
def weight_quant_batch_matmul_v2(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    *,
    transpose_x: bool = False,
    transpose_weight: bool = False,
    antiquant_group_size: int = 0,
    dtype: int = -1,
    inner_precise: int = 0,
) -> Tensor:
    """x @ ((weight + antiquant_offset) * antiquant_scale): int8 weight, scales of x's dtype per output channel.

    The scaled weight is rounded to x's dtype, as it enters the matrix unit; the sum is in fp32.
    Source: ops-nn matmul/weight_quant_batch_matmul_v2 and its op document.
    """
    require(not transpose_x and antiquant_group_size == 0, "WeightQuantBatchMatmulV2 with a transposed x or groups")
    require(dtype == -1 or ge_dtype(dtype) is x.dtype, f"output dtype {dtype}; the interpreter knows x's own")
    require(inner_precise == 0, f"inner_precise {inner_precise}; the interpreter knows 0, high precision")
    require_dtype("x", x, torch.float16, torch.bfloat16)
    require_dtype("weight", weight, torch.int8)
    require_same_dtype(x=x, antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset)
    stored = weight.mT if transpose_weight else weight  # [in, out]
    scale = antiquant_scale.reshape(-1).float()
    require(scale.numel() in (1, stored.shape[1]), f"{scale.numel()} scales for {stored.shape[1]} columns")
    shifted = stored.float() if antiquant_offset is None else stored.float() + antiquant_offset.reshape(-1).float()
    return (x.float() @ (shifted * scale).to(x.dtype).float()).to(x.dtype)


@ge_op("AddRmsNormDynamicQuant")
def add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    epsilon: float = 1e-6,
    output_mask: Sequence[bool] = (),
    dst_type: int = _INT8,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """DynamicQuant of the RMS norm of x1 + x2, all in fp32 after the sum: y1, y2 (empty), the sum, scale1, scale2.

    Source: ops-nn norm/add_rms_norm_dynamic_quant and its op document.
    """
    require(not output_mask or list(output_mask) == [True, False], f"output_mask {output_mask}")
    require(dst_type == _INT8, f"dst_type {dst_type}; the interpreter knows int8")
    require_dtype("x1", x1, torch.float16, torch.bfloat16)
    require_same_dtype(x1=x1, x2=x2, gamma=gamma)
    total = x1 + x2
    wide = total.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * gamma.float()
    y, scale = _quantize_rows(normed)
    return y, torch.zeros_like(y), total, scale, torch.zeros_like(scale)


@ge_op("TransQuantParamV2")
def trans_quant_param_v2(scale: Tensor, offset: Tensor | None = None, *, round_mode: int = 0) -> Tensor:
    """The int64 form of an fp32 scale: its bits without the last 13, and bit 46 set."""
    require(offset is None and round_mode == 0, "TransQuantParamV2 with an offset or rounding")
    require_dtype("scale", scale, torch.float32)
    return (scale.view(torch.int32).long() & 0xFFFFE000) | (1 << 46)


def unpack_scale(packed: Tensor) -> Tensor:
    """The fp32 scale in an int64 of TransQuantParamV2."""
    bits = packed.view(torch.int64) & 0xFFFFFFFF
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of x / s and s, each row's largest |x| / 127."""
    scale = x.abs().amax(-1) / 127.0
    return _to_int8(x / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]), scale


def _to_int8(x: Tensor) -> Tensor:
    require(not bool(x.isnan().any()), "NaN is rounded to int8: undefined on the chip")
    return x.round().clamp(-128, 127).to(torch.int8)
