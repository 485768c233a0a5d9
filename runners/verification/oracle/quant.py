"""Formulas of quantization to int8 and of products of quantized matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES
from graph_gemma.runners.verification.oracle.kernels import rms_norm
from graph_gemma.runners.verification.oracle.registry import Attrs, Inputs, formula

_LARGEST = 127


@formula("AscendQuantV2")
def _multiply(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["x"] * x["scale"] + x.get("offset", 0.0)]


@formula("Quantize")
def _divide(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["x"] / x["scales"] + x.get("zero_points", 0.0)]


@formula("DynamicQuant")
def _by_row(x: Inputs, a: Attrs) -> list[Tensor]:
    return _rows(x["x"] * x.get("smooth_scales", 1.0))


def _rows(x: Tensor) -> list[Tensor]:
    """x over each row's step, and the step: the largest magnitude is 127 of them. A row of zeros has a step of 0."""
    step = torch.maximum(x.max(-1).values, -x.min(-1).values) / _LARGEST
    return [torch.where(step[..., None] > 0, x / step[..., None], 0.0), step]


@formula("AddRmsNormQuant")
def _norm_divide(x: Inputs, a: Attrs) -> list[Tensor]:
    """The sum is normalized unrounded where one scale serves the whole tensor, which is what lowered graphs have."""
    assert x["scales1"].numel() == 1, "a scale per channel, which lowered graphs do not have"
    total = x["x1"] + x["x2"]
    normed = rms_norm(total, x["gamma"], a.get("epsilon", 1e-6))
    quantized = normed / x["scales1"] + x.get("zero_points1", 0.0)
    return [quantized, torch.zeros(total.shape, dtype=torch.int64), total]


@formula("AddRmsNormDynamicQuant")
def _norm_by_row(x: Inputs, a: Attrs) -> list[Tensor]:
    """What is normalized is the sum as it is returned, rounded."""
    total = x["x1"] + x["x2"]
    rounded = total.to(a["input_dtypes"]["x1"]).double()
    quantized, step = _rows(rms_norm(rounded, x["gamma"], a.get("epsilon", 1e-6)))
    return [quantized, torch.zeros(total.shape, dtype=torch.int64), total, step, torch.zeros(step.shape)]


@formula("QuantBatchMatmulV3")
def _int8_product(x: Inputs, a: Attrs) -> list[Tensor]:
    left = x["x1"].transpose(-1, -2) if a.get("transpose_x1") else x["x1"]
    right = x["x2"].transpose(-1, -2) if a.get("transpose_x2") else x["x2"]
    total = torch.einsum("mk,kn->mn", left, right) + x.get("bias", 0)
    assert total.dtype == torch.int64
    if GE_DTYPES.get(a.get("dtype", -1)) is torch.int32:
        return [total]
    scale = x["scale"] if x["scale"].is_floating_point() else _scale_in(x["scale"])
    result = total.double() * scale
    return [result * x["pertoken_scale"].unsqueeze(-1) if "pertoken_scale" in x else result]


@formula("DequantBias")
def _dequant_bias(x: Inputs, a: Attrs) -> list[Tensor]:
    return [x["x"].double() * x["weight_scale"]]


def _scale_in(packed: Tensor) -> Tensor:
    """The fp32 number in the low half of each int64."""
    halves = packed.contiguous().numpy().view("<f4").reshape(*packed.shape, 2)
    return torch.from_numpy(halves[..., 0].astype(np.float64))


@formula("WeightQuantBatchMatmulV2")
def _int8_weight_product(x: Inputs, a: Attrs) -> list[Tensor]:
    weight = x["weight"].T if a.get("transpose_weight") else x["weight"]  # [in, out]
    columns = (weight + x.get("antiquant_offset", torch.zeros(1)).reshape(-1)) * x["antiquant_scale"].reshape(-1)
    return [torch.einsum("mk,kn->mn", x["x"], columns)]
