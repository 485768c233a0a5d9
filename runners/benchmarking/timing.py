"""Timings of a batch of requests, and their summary over repeats."""

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
    """One run of a case; times in seconds."""

    total_s: float  # until all answers were complete
    first_s: list[float]  # per request, until its first token
    prefill_s: float  # of computing prompts
    step_s: list[float]  # of each step that gave every request of the batch a further token
    partial_steps: int = 0  # steps that gave only some of the requests a further token
    preemptions: int = 0
    answers: list[list[int]] = field(default_factory=list)  # token ids


@dataclass(frozen=True)
class Summary:
    """Repeats of a case with one runner: medians over the repeats; ranges are the smallest and largest repeat."""

    case: Case
    total_s: float
    first_s: float  # until every request of the batch has its first token
    first_range_s: tuple[float, float]
    first_mean_s: float  # the mean over the requests
    prefill_s: float
    step_s: float | None  # of a step of the full batch; None: there was none
    step_range_s: tuple[float, float] | None
    step_percentiles_s: tuple[float, float, float] | None  # 50th, 90th and 99th of all such steps
    note: str  # why the figures are not those of an undisturbed full batch, or ""


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
