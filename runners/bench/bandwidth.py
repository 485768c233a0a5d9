"""The bound of a decode step: the bytes that it must read, by the bandwidth that this machine shows now."""

from __future__ import annotations

import time

import torch

from graph_model.compile import CompiledModel
from graph_model.quantisation import HEAD
from runners.bench.timing import Case
from runners.load import cache_token_bytes

_PROBE_BYTES = 256 << 20


class ReadProbe:
    """Measures how fast all threads together read memory, by summing an array far larger than the caches."""

    def __init__(self, device: torch.device) -> None:
        self._array = torch.ones(_PROBE_BYTES // 4, device=device)

    @property
    def nbytes(self) -> int:
        """What one `read` reads."""
        return self._array.nbytes

    def read(self) -> None:
        self._array.sum().item()

    def bytes_per_s(self) -> float:
        """The best of three reads."""
        return max(self._once() for _ in range(3))

    def _once(self) -> float:
        start = time.perf_counter()
        self.read()
        return self.nbytes / (time.perf_counter() - start)


def decode_step_bytes(model: CompiledModel, case: Case) -> int:
    """What a decode step in the middle of the answers reads: the weights once, and each request's keys and values."""
    config, element = model.recipe.config, model.recipe.dtype.itemsize
    quantisation = model.recipe.quantisation
    weights = model.weight_bytes
    if not config.tie_word_embeddings or (quantisation is not None and HEAD in quantisation.linears):
        # Of an embedding that is not the head, a step reads one row per request.
        weights -= config.vocab_size * config.hidden_size * element
    context = case.prompt + case.answer // 2
    return weights + case.batch * context * cache_token_bytes(config, element, quantisation)
