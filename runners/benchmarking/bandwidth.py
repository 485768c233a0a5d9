"""Measure the read bandwidth of the machine, which bounds the speed of decode steps."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch

_CPU_BYTES = 1 << 30
_DEVICE_BYTES = 4 << 30
_SLICE_BYTES = 16 << 20  # that a thread reads at a time, so that all threads end at about the same time
_READS = 3


class ReadProbe:
    """Reads an array far larger than the caches, with all threads at once.

    On a CPU each thread forms scalar products of slices with themselves: of numpy's kernels the one that waits for
    memory only.
    """

    def __init__(self, device: str, threads: int, num_bytes: int | None = None) -> None:
        self._pool: ThreadPoolExecutor | None = None
        if device == "cpu":
            array = np.ones((num_bytes or _CPU_BYTES) // 4, np.float32)
            self.nbytes = array.nbytes
            self._slices = np.array_split(array, max(threads, array.nbytes // _SLICE_BYTES))
            self._pool = ThreadPoolExecutor(threads)
        else:
            self._array = torch.ones((num_bytes or _DEVICE_BYTES) // 4, device=device)
            self.nbytes = self._array.nbytes
        self.read()  # the first read touches the memory and is not measured

    def read(self) -> float:
        """Read all of it once; returns the sum of its squares, or its sum on a device."""
        if self._pool is None:
            return self._array.sum().item()
        return float(sum(self._pool.map(_square_sum, self._slices)))

    def measure(self) -> list[float]:
        """The bandwidth of a few reads, bytes/s."""
        found = []
        for _ in range(_READS):
            start = time.perf_counter()
            self.read()
            found.append(self.nbytes / (time.perf_counter() - start))
        return found

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def spread(bandwidths: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    return median(bandwidths), min(bandwidths), max(bandwidths)


def _square_sum(values: np.ndarray) -> float:
    return float(np.dot(values, values))
