"""Rotary embedding: RotaryMul."""

from __future__ import annotations

from graph_model.chips.chip import Chip


def fused_rotary(chip: Chip, head_dim: int) -> bool:
    """Whether RotaryMul takes the head_dim (a multiple of 64); otherwise rotary embedding is decomposed."""
    return head_dim % 64 == 0 and head_dim <= (chip.limits("RotaryMul").max_head_dim or head_dim)
