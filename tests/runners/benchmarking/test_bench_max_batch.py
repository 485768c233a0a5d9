"""The search for the largest batch, with a machine that is made up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.benchmarking import max_batch
from graph_gemma.runners.benchmarking.max_batch import Trial, largest_batch, problem_of
from graph_gemma.runners.benchmarking.results import Row
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Case, Timing, summarize
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.llm.step_memory import check_step_sizes
from graph_gemma.runners.settings.model_settings import resolve_settings


@pytest.mark.parametrize("limit", [*range(20), 31, 32, 33])
def test_the_search_finds_the_largest_batch_trying_none_twice(limit: int) -> None:
    tried: list[int] = []

    def attempt(batch: int) -> Trial:
        tried.append(batch)
        return Trial(batch, "" if batch <= limit else f"latency at {batch}")

    best, reason = largest_batch(attempt, largest=32)
    assert best == (min(limit, 32) or None)
    assert len(tried) == len(set(tried)) <= 11
    assert max(tried) <= 32
    assert reason == (f"latency at {limit + 1}" if limit < 32 else "the search ends at largest_batch=32")


def test_a_batch_without_memory_is_too_large_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engine refuses it, whichever setting it names. What is wrong with other settings ends the search."""
    settings = resolve_settings(compose("infer", ["backend=eager"]))
    request: Any = SimpleNamespace(model=settings)
    probe: Any = None

    def start(*unused: object) -> None:
        check_step_sizes(replace(settings, max_batch_size=8), lambda sizes: 4.5 - sizes.max_batch_size, 0)

    monkeypatch.setattr(max_batch, "Worker", start)
    trial = max_batch._attempt(request, Case(8, 4, 11), probe, 1, "cpu")
    assert trial.problem.startswith("memory: batch 8 does not fit (max_batch_size is 8: ")

    def refuse(*unused: object) -> None:
        raise UserError("dtype: there is no such one")

    monkeypatch.setattr(max_batch, "Worker", refuse)
    with pytest.raises(UserError, match="no such one"):
        max_batch._attempt(request, Case(8, 4, 11), probe, 1, "cpu")


def measured(timings: list[Timing]) -> Row:
    summary = summarize(Case(2, 4, 11), timings)
    return Row("tiny", "ours", summary, Facts("float32", 1, 1, 1, ""), (1.0, 1.0, 1.0), 1)


def test_latency_counts_by_percentile_memory_by_preemptions() -> None:
    # The median is within the limit; two steps of ten are not.
    timing = Timing(1.0, [0.1, 0.1], 0.1, [0.01] * 8 + [0.05] * 2)
    assert problem_of(measured([timing]), 0.06) == ""
    assert "latency: at batch 2 one step in ten takes more than 50.0 ms" in problem_of(measured([timing]), 0.02)
    assert problem_of(measured([replace(timing, preemptions=1)]), 1.0).startswith("memory: batch 2 has 1 preemptions")
    assert "never full" in problem_of(measured([replace(timing, step_s=[])]), 1.0)
