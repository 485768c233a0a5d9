"""The power of two that float16 steps divide the residual stream by: its default and its limits."""

from __future__ import annotations

DEFAULT_EXPONENT = 5
MOST_EXPONENT = 10  # more would put numbers of the stream that matter among float16's subnormal ones
