"""Memory of the largest steps besides weights and KV cache, and which setting makes it too large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from graph_gemma.graph_model.bucket import Bucket, BucketTable, make_inputs
from graph_gemma.graph_model.errors import NoMemoryError
from graph_gemma.runners.engine.input_batch import InputBatch
from graph_gemma.runners.settings.declared.infer import SMALLEST_CHUNK
from graph_gemma.runners.settings.model_settings import ModelSettings

# The settings that decide how large steps are: their smallest values, of which all others are multiples.
_SMALLEST: dict[str, Any] = {"max_batch_size": 1, "max_prefill_batch_size": 1, "max_prefill_tokens": SMALLEST_CHUNK}


def step_bytes(buckets: BucketTable, vocab_size: int, windowed: bool) -> int:
    """Bytes of the tables and inputs that the largest steps have for their rows and tokens, and of their logits.

    The first are the host's, and few where nothing is absurd. Other activations are not counted: memory_fraction
    leaves room for them. windowed: whether the model has layers with a window.
    """
    rows = buckets.batch_sizes[-1] + buckets.prefill_batch_sizes[-1]
    width = buckets.table_widths[-1]
    # As many bytes per row, and per token, in steps of any size.
    short, long = (
        _nbytes(make_inputs(Bucket("extend", 1, chunk, width, "sample"), windowed).arrays()) for chunk in (1, 2)
    )
    logits = vocab_size * np.dtype(np.float32).itemsize
    return rows * (InputBatch(1, width, windowed).nbytes + short + logits) + buckets.max_step_tokens * (long - short)


def _nbytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def check_step_sizes(settings: ModelSettings, room: Callable[[ModelSettings], float], needed: float) -> None:
    """Raise NoMemoryError if steps as large as the settings allow leave no room, and smaller ones leave enough.

    room: what settings leave of the memory for the KV cache. needed: what the cache needs at least, in the same unit.
    """
    if room(settings) > 0:
        return
    for others in ({}, _SMALLEST):  # one setting alone may be at fault, or several
        fitting = {name: _largest(name, settings, others, room, needed) for name in _SMALLEST}
        found = {name: most for name, most in fitting.items() if 0 < most < getattr(settings, name)}
        if found:
            values = " and ".join(f"{name} is {getattr(settings, name)}" for name in found)
            most = (" and " if others else " or ").join(f"{name}={value}" for name, value in found.items())
            raise NoMemoryError(
                f"{values}: for steps of that size there is no memory besides the weights (tables and inputs of rows, "
                f"logits, scratch blocks of the KV cache). Give at most {most}."
            )


def _largest(
    name: str,
    settings: ModelSettings,
    others: dict[str, Any],
    room: Callable[[ModelSettings], float],
    needed: float,
) -> int:
    """The largest value of a setting, at most the one that it has, with which `others` leave enough room; 0: none."""
    unit = _SMALLEST[name]
    low, high = 0, getattr(settings, name) // unit
    while low < high:
        middle = (low + high + 1) // 2
        changed: dict[str, Any] = {**others, name: middle * unit}
        if room(replace(settings, **changed)) >= needed:
            low = middle
        else:
            high = middle - 1
    return low * unit
