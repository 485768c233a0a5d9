"""How far apart two results of the same op may be, and how far they are."""

from __future__ import annotations

import torch
from torch import Tensor

from passes.check import difference

# Largest difference that an op's own rounding may make, relative to the largest value. Integers must be equal.
OP_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """As passes.check.difference, where infinities must stand in equal places and a tensor of zeros is fine."""
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
