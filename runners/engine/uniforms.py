"""Uniform random numbers that depend on a request's seed and a token's position, and on nothing else."""

from __future__ import annotations

import numpy as np

CHUNK = 64  # numbers made at a time
_WORDS_PER_COUNT = 4  # 64-bit words that Philox4x64 makes per value of its counter


def uniform_chunk(seed: int, index: int) -> np.ndarray:
    """The numbers of positions CHUNK * index to CHUNK * (index + 1) - 1: [CHUNK] float32 in [0, 1).

    Position p takes the p-th 64-bit word of Philox4x64-10 (Salmon et al., 2011) with key `seed` and counter 0;
    its upper 24 bits are the number, so that float32 has it exactly and never rounds up to 1.
    """
    counter = index * (CHUNK // _WORDS_PER_COUNT)
    words = np.random.Philox(key=seed, counter=counter).random_raw(CHUNK)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
