"""The power of two that float16 steps divide the residual stream by: its default, its limits, what a stream needs."""

from __future__ import annotations

import math

DEFAULT_EXPONENT = 5  # the stream may reach 2.1 million
MOST_EXPONENT = 10  # 67 million; more was not tried, and numbers below 2 ** -4 already lose some of their last bits
FLOAT16_MAX = 65504.0
HEADROOM = 16  # how many times larger than on calibration texts the stream may become on others


def recommended_exponent(largest: float) -> int:
    """For a stream that reaches `largest`: the first from the default on that leaves HEADROOM, or else the most."""
    needed = math.ceil(math.log2(largest * HEADROOM / FLOAT16_MAX)) if largest else 0
    return min(max(DEFAULT_EXPONENT, needed), MOST_EXPONENT)
