"""Normalization and rotary embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    FLOATS,
    require,
    require_dtype,
    require_same_dtype,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op


@ge_op("RmsNorm")
def rms_norm(x: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + epsilon) * gamma over gamma's dimensions, which are x's last; and 1 / sqrt(...).

    gamma has x's dtype, or fp32 with a 16-bit x. All in fp32, rounded once to x's dtype; rstd is fp32.
    Source: ops-nn norm/rms_norm (op_kernel/rms_norm.h, ComputeMulGammaCast).
    """
    require_dtype("x", x, *FLOATS)
    require_dtype("gamma", gamma, x.dtype, torch.float32)
    normed, rstd = _normalize(x, gamma, epsilon)
    return (normed * gamma.float()).to(x.dtype), rstd


@ge_op("GemmaRmsNorm")
def gemma_rms_norm(x: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """RmsNorm with 1 + gamma, which is computed in fp32; gamma has x's dtype. One rounding, at the end.

    Source: ops-nn norm/gemma_rms_norm, which runs rms_norm's kernel with is_gemma.
    """
    require_dtype("x", x, *FLOATS)
    require_same_dtype(x=x, gamma=gamma)
    normed, rstd = _normalize(x, gamma, epsilon)
    return (normed * (1.0 + gamma.float())).to(x.dtype), rstd


@ge_op("AddRmsNorm")
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """RmsNorm of x1 + x2; returns the norm, rstd (fp32) and the sum. All inputs have one dtype.

    Rounding for 16-bit dtypes: the sum is rounded, and is what is normalized; x * rstd is rounded before it is
    multiplied by gamma, and the product is rounded again.
    Source: ops-nn norm/add_rms_norm (op_kernel/add_rms_norm.h, CopyIn and Compute).
    """
    require_dtype("x1", x1, *FLOATS)
    require_same_dtype(x1=x1, x2=x2, gamma=gamma)
    require(x1.shape == x2.shape, f"shapes {tuple(x1.shape)} and {tuple(x2.shape)} differ")
    x = x1 + x2
    normed, rstd = _normalize(x, gamma, epsilon)
    return normed.to(x.dtype) * gamma, rstd, x


@ge_op("RotaryMul")
def rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, *, mode: str = "half") -> Tensor:
    """x * r1 + rotate_half(x) * r2, with rotate_half(x) = (-second half, first half) of the last dimension.

    r1 (cos) and r2 (sin) have x's dtype and rank and broadcast to x. fp16: each product and the sum are rounded;
    bf16: computed in fp32 and rounded once. Source: ops-transformer posembedding/rotary_position_embedding,
    rotate_half (the bf16 kernel widens, the fp16 one does not).
    """
    require(mode == "half", f"RotaryMul mode {mode!r}")
    require_dtype("x", x, *FLOATS)
    require_same_dtype(x=x, r1=r1, r2=r2)
    require(x.dim() == 4 and r1.dim() == 4 and r1.shape == r2.shape, "RotaryMul takes 4-D x and equal 4-D r1, r2")
    require(x.shape[-1] == r1.shape[-1] and x.shape[-1] % 2 == 0, "RotaryMul's last dimensions must be equal and even")
    dtype = x.dtype
    if dtype is torch.bfloat16:
        x, r1, r2 = x.float(), r1.float(), r2.float()
    first, second = x.chunk(2, dim=-1)
    return (x * r1 + torch.cat((-second, first), dim=-1) * r2).to(dtype)


def _normalize(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x * rstd and rstd, in fp32."""
    dims = gamma.dim()
    require(0 < dims <= x.dim() and x.shape[-dims:] == gamma.shape, f"gamma {tuple(gamma.shape)}, x {tuple(x.shape)}")
    x32 = x.float()
    rstd = torch.rsqrt(x32.square().mean(tuple(range(-dims, 0)), keepdim=True) + epsilon)
    return x32 * rstd, rstd
