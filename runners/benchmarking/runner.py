"""Runner: the interface of an engine that a benchmark measures, ours or a peer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from graph_gemma.runners.benchmarking.timing import Case, Timing


@dataclass(frozen=True)
class Facts:
    """Precision, sizes and versions of a runner."""

    precision: str  # of its weights, and of what else differs
    weight_bytes: int  # of its weights in memory; with several ranks, of one rank
    step_bytes: int  # of the weights that a step reads, each once, on all ranks
    # That a step reads per token of a request's context in the layers of each window; None: those that see all tokens.
    token_bytes: Mapping[int | None, int]
    details: str  # backend and version

    def decode_step_bytes(self, case: Case) -> int:
        """Bytes that a step of the full batch in the middle of the answers must read."""
        context = case.prompt + case.answer // 2
        seen = {window: context if window is None else min(window, context) for window in self.token_bytes}
        return self.step_bytes + case.batch * sum(seen[window] * size for window, size in self.token_bytes.items())


class Runner(Protocol):
    """Lives in a process of its own (see `worker`), where `start` of its module makes it."""

    facts: Facts

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        """Greedy answers of exactly `answer` tokens to all prompts, which arrive at once."""

    def peak_bytes(self) -> int:
        """Peak memory of the process on the runner's device."""
