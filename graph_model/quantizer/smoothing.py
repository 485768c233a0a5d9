"""SmoothQuant: outliers of activations move into weights, without changing what the layer computes.

Xiao et al., arXiv:2211.10438: channel j of a linear's input is divided by s_j and column j of its weight
multiplied by it, s = max|x|^a / max|w|^(1-a). What divides the input is the norm, or the linear, before it. Gemma's
norm multiplies by 1 + w, so w' = (1 + w) / s - 1; w' is rounded to the dtype it is stored in first, and the weights
take s_eff = (1 + w) / (1 + w') of the rounded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graph_gemma.graph_model.quantization.int8 import quantize_weight
from graph_gemma.graph_model.quantizer.ranges import RangeMethod, activation_scale, sqnr

STRENGTHS = tuple(0.1 * step for step in range(1, 10))
_SEARCH_TOKENS = 512
# Factors of the norm are kept this many spacings of the stored dtype away from 0, where rounding would ruin them.
_SPACINGS = 64
_WIDEST = 256.0


@dataclass(frozen=True)
class Migration:
    """How far outliers move from a linear's input into its weight."""

    scales: Tensor  # [channels], which the input is divided by
    strength: float | None  # None: scales are 1


def search_migration(
    x: Tensor,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
    method: RangeMethod,
    limit: Tensor | None,
    groups: tuple[int, int, int] | None = None,
) -> Migration:
    """The migration under which the quantized products x @ w.T are nearest to the exact ones, or none.

    x [tokens, channels] float32; weights [out, channels]. limit [channels]: the largest legal scale; None: any.
    groups: channels are [a, b, c] and the b must have one scale, as the query heads over one value head.
    """
    tokens = x[:: -(-x.shape[0] // _SEARCH_TOKENS)]
    joined = torch.cat([weight.float() for weight in weights])
    exact = tokens @ joined.t()
    largest = x.abs().amax(0)
    columns = joined.abs().amax(0)
    if groups is not None:
        largest, columns = (_shared(values, groups) for values in (largest, columns))
    best, best_quality = Migration(torch.ones_like(largest), None), quality(tokens, joined, exact, dtype, method)
    for strength in STRENGTHS:
        scales = _scales(largest, columns, strength, limit)
        found = quality(tokens / scales, joined * scales, exact, dtype, method)
        if found > best_quality:
            best, best_quality = Migration(scales, strength), found
    return best


def quality(x: Tensor, weight: Tensor, exact: Tensor, dtype: torch.dtype, method: RangeMethod) -> float:
    """SQNR in dB of the product of x and weight when both are quantized."""
    rounded = activation_scale(x, method, dtype).rounded(x)
    q, scale = quantize_weight(weight)
    return sqnr(exact, rounded @ q.float().mul_(scale[:, None]).t())


def norm_limit(weight: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    """The largest scale per channel that the norm's factor offset + weight can be divided by in `dtype`."""
    return ((offset + weight.float()).abs() / (_SPACINGS * torch.finfo(dtype).eps)).clamp(min=1.0)


def migrate_norm(weight: Tensor, offset: float, scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(w', s_eff): the norm's new weight in `dtype`, and the float32 factors of its consumers' columns."""
    factor = offset + weight.float()
    migrated = (factor / scales - offset).to(dtype)
    new_factor = offset + migrated.float()
    usable = (new_factor != 0) & (factor != 0)
    migrated = torch.where(usable, migrated, weight.to(dtype))
    return migrated, torch.where(usable, factor / torch.where(usable, new_factor, 1.0), 1.0)


def _shared(values: Tensor, groups: tuple[int, int, int]) -> Tensor:
    return values.view(groups).amax(1, keepdim=True).expand(groups).reshape(-1)


def _scales(largest: Tensor, columns: Tensor, strength: float, limit: Tensor | None) -> Tensor:
    scales = largest.clamp(min=1e-5) ** strength / columns.clamp(min=1e-5) ** (1 - strength)
    # Only ratios between channels matter; around 1 the norm's weight keeps most of its precision.
    scales = scales / scales.log().median().exp()
    # What lies further apart would leave float16's normal numbers.
    scales = scales.clamp(1 / _WIDEST, _WIDEST)
    return scales if limit is None else torch.minimum(scales, limit)
