"""An activation's scale and offset from calibration values (minmax, percentile, mse), and the SQNR of int8."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from graph_gemma.graph_model.quantization.scheme import ActivationScale

RangeMethod = Literal["minmax", "percentile", "mse"]
_PERCENTILE = 0.9999
_SAMPLE = 1 << 20  # values that percentiles and squared errors are taken from
_SHRINKS = tuple(1.0 - 0.05 * step for step in range(15))


def activation_scale(x: Tensor, method: RangeMethod, dtype: torch.dtype) -> ActivationScale:
    """The scale of values like x, which covers 0; `dtype` is that of the stored scale."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    if method == "minmax":
        return scale_of_range(low, high, dtype)
    sample = _sample(x)
    if method == "percentile":
        ordered = sample.sort().values
        last = ordered.numel() - 1
        low = min(ordered[math.floor((1 - _PERCENTILE) * last)].item(), 0.0)
        high = max(ordered[math.ceil(_PERCENTILE * last)].item(), 0.0)
        return scale_of_range(low, high, dtype)
    candidates = [scale_of_range(low * shrink, high * shrink, dtype) for shrink in _SHRINKS]
    return min(candidates, key=lambda scale: (scale.rounded(sample) - sample).square().mean().item())


def scale_of_range(low: float, high: float, dtype: torch.dtype) -> ActivationScale:
    """scale = (high - low) / 255, rounded to `dtype` first; offset = round(-low / scale) - 128."""
    smallest = torch.finfo(dtype).smallest_normal
    scale = torch.tensor(max((high - low) / 255, smallest)).to(dtype).item()
    return ActivationScale(scale, max(-128, min(127, round(-low / scale) - 128)))


def outlier_ratio(x: Tensor) -> float:
    """The largest |x| of a channel, the last dimension, over that of the median channel."""
    largest = x.abs().flatten(0, -2).amax(0)
    return (largest.max() / largest.median().clamp(min=1e-12)).item()


def sqnr(exact: Tensor, found: Tensor) -> float:
    """Signal to quantization noise in dB."""
    noise = (found.double() - exact.double()).square().sum().item()
    signal = exact.double().square().sum().item()
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _sample(x: Tensor) -> Tensor:
    flat = x.flatten()
    return flat[:: -(-flat.numel() // _SAMPLE)]
