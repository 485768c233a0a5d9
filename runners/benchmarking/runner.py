"""What can run cases: our engine, and what a user would run instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from runners.benchmarking.timing import Case, Timing


@dataclass(frozen=True)
class Facts:
    """What a runner says of itself once it is ready.

    precision: of its weights, and of what else differs. weight_bytes: of the weights that it holds (at world sizes
    above 1, of one rank). step_bytes: of the weights that a step reads, each once, on all ranks. token_bytes: that a
    step reads per token of a request's context. details: backend and version.
    """

    precision: str
    weight_bytes: int
    step_bytes: int
    token_bytes: int
    details: str

    def decode_step_bytes(self, case: Case) -> int:
        """What a step of the full batch in the middle of the answers must read."""
        return self.step_bytes + case.batch * (case.prompt + case.answer // 2) * self.token_bytes


class Runner(Protocol):
    """Lives in a process of its own (see `worker`), where `start` of its module makes it."""

    facts: Facts

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        """Greedy answers of exactly `answer` tokens to all prompts, which arrive at once."""

    def peak_bytes(self) -> int:
        """Most memory that the process has held at once on the runner's device."""
