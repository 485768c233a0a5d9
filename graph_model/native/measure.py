"""Time Gemma-2B's linear layers by our kernels and by torch's, in turn.

``python -m graph_gemma.graph_model.native.measure``. One thread, and its CPU time: what else runs on the machine
disturbs that less than it disturbs wall time.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.config import GEMMA_2B
from graph_gemma.graph_model.native.build import load_kernels

_ROUNDS = 5
Run = Callable[[], object]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        load_kernels(Path(directory), os.environ.get("CXX", "g++"), "")
    torch.set_num_threads(1)
    probe = torch.ones(64 << 20)
    print(f"{'layer':>10} {'rows':>5} {'torch ms':>9} {'ours ms':>9} {'ratio':>6} {'ours GB/s':>10} {'read GB/s':>10}")
    for name, (out, size) in _shapes().items():
        weight = torch.randn(out, size).bfloat16()
        for rows in (1, 8, 256):
            x = torch.randn(rows, size).bfloat16()
            op = ops.skinny_linear if rows <= 16 else ops.tiled_linear
            torch_s, ours_s, read_s = _in_turn(
                partial(F.linear, x, weight),
                partial(op, x, weight, None, x.dtype),
                probe.sum,
            )
            print(
                f"{name:>10} {rows:>5} {torch_s * 1e3:>9.2f} {ours_s * 1e3:>9.2f} {torch_s / ours_s:>6.2f} "
                f"{weight.nbytes / ours_s / 1e9:>10.1f} {probe.nbytes / read_s / 1e9:>10.1f}",
                flush=True,
            )


def _shapes() -> dict[str, tuple[int, int]]:
    c = GEMMA_2B
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "qkv": (query + 2 * key, c.hidden_size),
        "o": (c.hidden_size, query),
        "gate_up": (2 * c.intermediate_size, c.hidden_size),
        "down": (c.hidden_size, c.intermediate_size),
    }


def _in_turn(*runs: Run) -> list[float]:
    """Median CPU seconds of each, after one run that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS + 1):
        for run, found in zip(runs, times, strict=True):
            start = time.thread_time()
            run()
            found.append(time.thread_time() - start)
    return [median(found[1:]) for found in times]


if __name__ == "__main__":
    main()
