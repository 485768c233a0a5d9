"""Tolerances of rounding by dtype, and the relative difference of two tensors."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest difference that another order of the same sums may make, relative to the largest logit: in 16 bit six units in
# the last place of 1 (the demo's attention comes to 4.3).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 4.6e-2}

# A tie is a token that differs from the reference's in 16 bit, where both logits are equal up to rounding. So many may
# occur in a run of any length.
FEW_TIES = 3

# Largest difference that an op's own rounding may make, relative to the largest value. Integers must be equal.
OP_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def most_ties(tokens: int) -> int:
    """How many of so many tokens may be ties: 1 %, in short runs FEW_TIES."""
    return max(FEW_TIES, tokens // 100)


def is_finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, in one pass at the speed of reading it."""
    return not x.is_floating_point() or not x.numel() or all(bool(end.isfinite()) for end in x.aminmax())


def difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference relative to the largest expected value; for integers, the share that differs. NaN: inf."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return (expected != found).float().mean().item()
    error = ((expected.double() - found.double()).abs().max() / expected.double().abs().max()).item()
    return error if error == error else float("inf")


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """As `difference`; infinities must stand in equal places, and a tensor of zeros is fine."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return difference(expected, found)
    finite = expected.isfinite()
    other, theirs = expected[~finite], found[~finite]
    if not torch.equal(other.isnan(), theirs.isnan()) or not torch.equal(other.nan_to_num(), theirs.nan_to_num()):
        return float("inf")
    expected, found = expected[finite], found[finite]
    if not expected.numel() or torch.equal(expected, found):
        return 0.0
    return difference(expected, found) if bool(expected.any()) else found.abs().max().item()
