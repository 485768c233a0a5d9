"""What is measured of one batch of requests, and its summary over repeats."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Case:
    """One measurement: `batch` prompts of `prompt` tokens each, `answer` tokens to each."""

    batch: int
    prompt: int
    answer: int


@dataclass(frozen=True)
class Timing:
    """One run of a case. first_s: until every request has its first token. step_s: of each further token."""

    first_s: float
    step_s: list[float]

    @property
    def total_s(self) -> float:
        return self.first_s + sum(self.step_s)


class Runner(Protocol):
    """What can run a case. name: as in the results."""

    name: str

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        """Greedy answers of exactly `answer` tokens to all prompts at once."""


@dataclass(frozen=True)
class Summary:
    """Repeats of a case by one runner: medians, and for the spread smallest and largest of the repeats.

    step_percentiles_s: of all single steps, the 50th, 90th and 99th.
    """

    case: Case
    runner: str
    total_s: float
    first_s: float
    first_range_s: tuple[float, float]
    step_s: float
    step_range_s: tuple[float, float]
    step_percentiles_s: tuple[float, float, float]


def summarise(case: Case, runner: str, timings: list[Timing]) -> Summary:
    firsts = [timing.first_s for timing in timings]
    steps = [median(timing.step_s) if timing.step_s else 0.0 for timing in timings]
    pooled = [step for timing in timings for step in timing.step_s] or [0.0]
    p50, p90, p99 = (float(value) for value in np.percentile(pooled, (50, 90, 99)))
    return Summary(
        case,
        runner,
        median(timing.total_s for timing in timings),
        median(firsts),
        (min(firsts), max(firsts)),
        median(steps),
        (min(steps), max(steps)),
        (p50, p90, p99),
    )


def random_prompts(case: Case, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that no run has seen before (`seed` differs in each), so that no prefix is found in a cache."""
    return np.random.default_rng(seed).integers(0, vocab_size, (case.batch, case.prompt)).tolist()
