"""Chips that lack an op of another, or limit it otherwise."""

from __future__ import annotations

from dataclasses import replace

from graph_gemma.graph_model.chips.chip import Chip, Limits


def without(chip: Chip, *ops: str) -> Chip:
    assert set(ops) <= chip.ops.keys()
    return replace(chip, ops={op: limits for op, limits in chip.ops.items() if op not in ops})


def with_limits(chip: Chip, op: str, limits: Limits) -> Chip:
    return replace(chip, ops={**chip.ops, op: limits})
