"""RMS normalization, alone and with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op


@canonical_op("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, rounded once to x's dtype.

    x [..., size] of any float dtype; weight [size] float32, the whole factor: Gemma's (1 + w).
    Zhang & Sennrich, arXiv:1910.07467; rounding as in transformers' GemmaRMSNorm.
    """
    x32 = x.to(torch.float32)
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


@canonical_op("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)")
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(s, weight, eps), s) with s = x + residual rounded to their common dtype.

    x, residual [..., size]; weight [size] float32, the whole factor.
    """
    total = x + residual
    return torch.ops.gemma.rms_norm(total, weight, eps), total
