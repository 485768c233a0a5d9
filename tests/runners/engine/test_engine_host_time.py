"""The engine adds little to the model's own time, at any length."""

from __future__ import annotations

from statistics import median

import pytest

from graph_gemma.runners.engine import SamplingParams
from graph_gemma.runners.engine.host_time import decode_steps

SAMPLED = SamplingParams(temperature=1.0, top_k=40, top_p=0.9, seed=1, max_new_tokens=512)


def host_us(batch: int, context: int) -> float:
    """CPU time per step, the median: other work on the machine must not count. The better of two runs."""
    return min(median(cpu for _, cpu in decode_steps(batch, context, SAMPLED)) for _ in range(2)) * 1e6


@pytest.mark.parametrize(("batch", "limit"), [(1, 300), (64, 1000)])
def test_host_time_per_decode_step_is_within_the_target(batch: int, limit: float) -> None:
    assert host_us(batch, 1000) <= limit


def test_host_time_does_not_grow_with_context() -> None:
    assert host_us(8, 7500) <= 1.3 * host_us(8, 100)
