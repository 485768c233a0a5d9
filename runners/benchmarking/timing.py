"""What is measured of one batch of requests, and its summary over repeats."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import numpy as np


@dataclass(frozen=True, order=True)
class Case:
    """One measurement: `batch` prompts of `prompt` tokens each, `answer` tokens to each."""

    batch: int
    prompt: int
    answer: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.prompt} + {self.answer}"


@dataclass(frozen=True)
class Timing:
    """One run of a case; times in seconds.

    total_s: until all answers were complete. first_s: per request, until its first token. prefill_s: spent on
    computing prompts. step_s: of each step that gave every request of the batch a further token; partial_steps: how
    many others gave a further token, to some of the requests. answers: the tokens chosen.
    """

    total_s: float
    first_s: list[float]
    prefill_s: float
    step_s: list[float]
    partial_steps: int = 0
    preemptions: int = 0
    answers: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """Repeats of a case by one runner: medians, and for the spread smallest and largest of the repeats.

    first_s: until every request of the batch has its first token. first_mean_s: the mean over its requests. step_s: of
    a step of the full batch, None if there was none. step_percentiles_s: of all such steps, the 50th, 90th and 99th.
    note: why the figures are not those of an undisturbed full batch, or "".
    """

    case: Case
    total_s: float
    first_s: float
    first_range_s: tuple[float, float]
    first_mean_s: float
    prefill_s: float
    step_s: float | None
    step_range_s: tuple[float, float] | None
    step_percentiles_s: tuple[float, float, float] | None
    note: str


def summarize(case: Case, timings: list[Timing]) -> Summary:
    firsts = [max(timing.first_s) for timing in timings]
    steps = [median(timing.step_s) for timing in timings if timing.step_s]
    pooled = [step for timing in timings for step in timing.step_s]
    p50, p90, p99 = (float(value) for value in np.percentile(pooled or [0.0], (50, 90, 99)))
    return Summary(
        case=case,
        total_s=median(timing.total_s for timing in timings),
        first_s=median(firsts),
        first_range_s=(min(firsts), max(firsts)),
        first_mean_s=median(sum(timing.first_s) / len(timing.first_s) for timing in timings),
        prefill_s=median(timing.prefill_s for timing in timings),
        step_s=median(steps) if steps else None,
        step_range_s=(min(steps), max(steps)) if steps else None,
        step_percentiles_s=(p50, p90, p99) if steps else None,
        note=_note(case, timings),
    )


def equal_share(case: Case, answers: list[list[int]], others: list[list[int]]) -> float:
    """The share of an answer before the first token that differs, over all answers."""
    equal = 0
    for ours, theirs in zip(answers, others, strict=True):
        pairs = zip(ours, theirs, strict=False)
        equal += next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    return equal / (case.batch * case.answer)


def random_prompts(case: Case, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that depend on `seed` alone, which differs in each repeat, so that no prefix is found in a cache."""
    return np.random.default_rng(seed).integers(0, vocab_size, (case.batch, case.prompt)).tolist()


def _note(case: Case, timings: list[Timing]) -> str:
    notes = []
    preemptions = sum(timing.preemptions for timing in timings)
    if preemptions:
        notes.append(f"{preemptions} preemptions")
    if case.answer > 1 and not all(timing.step_s for timing in timings):
        notes.append("the batch was never full")
    return ", ".join(notes)
