"""Products of quantized weights: QuantBatchMatmulV3, WeightQuantBatchMatmulV2 and DequantBias."""

from __future__ import annotations

from graph_model.chips.chip import Chip

MAX_SIZE = 65535  # of the last dimension of x and weight, on every chip


def sums_integers(chip: Chip) -> bool:
    """Whether a product's integers can be summed over the ranks before they are scaled."""
    return chip.limits("QuantBatchMatmulV3").int32_result and chip.has("DequantBias")
