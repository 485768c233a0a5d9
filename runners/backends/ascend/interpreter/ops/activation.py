"""Transcendental functions and activations: 16-bit inputs are computed in fp32 and rounded once.

Source: prototypes in elewise_calculation_ops.h and nonlinear_fuc_ops.h; ops-math, ops-nn activation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import FLOATS, require, require_dtype
from graph_gemma.runners.backends.ascend.interpreter.ops.pointwise import register_rounded_once, rounded_once
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return F.gelu(x, approximate="tanh")


def gelu_erf(x: Tensor) -> Tensor:
    """0.5 x (1 + erf(x / sqrt(2))); torch's own is NaN at infinity on some CPUs."""
    return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))


register_rounded_once(
    {
        "Cos": torch.cos,
        "Sin": torch.sin,
        "Tanh": torch.tanh,
        "Erf": torch.erf,
        "Sigmoid": torch.sigmoid,
        "Gelu": gelu_tanh,
    }
)


@ge_op("Exp")
def exp(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """e ** x; the attributes' other values are not used by torchair and refused."""
    require((base, scale, shift) == (-1.0, 1.0, 0.0), "Exp with a base, scale or shift")
    return rounded_once(torch.exp, x)


@ge_op("Log")
def log(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Natural logarithm; the attributes' other values are refused."""
    require((base, scale, shift) == (-1.0, 1.0, 0.0), "Log with a base, scale or shift")
    return rounded_once(torch.log, x)


@ge_op("GeluV2")
def gelu_v2(x: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU in the form that `approximate` names ("none": erf, "tanh"), in fp32, rounded once."""
    require(approximate in ("none", "tanh"), f"approximate={approximate!r}")
    return rounded_once(gelu_tanh if approximate == "tanh" else gelu_erf, x)


@ge_op("GeGluV2")
def geglu_v2(x: Tensor, *, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    """x is split in two along `dim`; y = gelu(one half) * other half; also returns gelu(...).

    activate_left: the first half is activated (default: the second). approximate: 0 erf, 1 tanh.
    Rounding: gelu in fp32; its output is rounded to x's dtype, the product uses the unrounded fp32 value.
    Source: prototype in activation/nn ops; ops-nn activation/ge_glu_v2 (gelu and multiplication in fp32).
    """
    require_dtype("x", x, *FLOATS)
    require(approximate in (0, 1), f"approximate={approximate}")
    require(x.shape[dim] % 2 == 0, f"dimension {dim} of {tuple(x.shape)} is not even")
    left, right = x.float().chunk(2, dim)
    activated, other = (left, right) if activate_left else (right, left)
    activated = gelu_tanh(activated) if approximate else gelu_erf(activated)
    return (activated * other).to(x.dtype), activated.to(x.dtype)
