"""phase=max_batch: the largest batch whose steps stay within the latency limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from graph_gemma.graph_model.errors import NoMemoryError
from graph_gemma.runners.benchmarking import engine_runner
from graph_gemma.runners.benchmarking.bandwidth import ReadProbe
from graph_gemma.runners.benchmarking.request import Request
from graph_gemma.runners.benchmarking.results import Row
from graph_gemma.runners.benchmarking.speed import OURS, SpeedTest
from graph_gemma.runners.benchmarking.timing import Case
from graph_gemma.runners.benchmarking.worker import Worker, WorkerError

_NO_MEMORY = ("SIGKILL", "MemoryError", "OutOfMemory", "can't allocate memory")


@dataclass(frozen=True)
class Trial:
    """A batch that was tried."""

    batch: int
    problem: str  # why it is too large, or ""
    row: Row | None = None  # what was measured; None: it could not run


def largest_batch(attempt: Callable[[int], Trial], largest: int) -> tuple[int | None, str]:
    """The largest batch without a problem, None if 1 has one; and what ends the search.

    Doubles the batch until one is too large, then halves the gap. attempt is called at most once per batch.
    """
    good, bad, reason = 0, largest + 1, f"the search ends at largest_batch={largest}"
    batch = 1
    while bad - good > 1:
        trial = attempt(batch)
        if trial.problem:
            bad, reason = batch, trial.problem
        else:
            good = batch
        batch = min(2 * good, largest) if bad > largest else (good + bad) // 2
    return good or None, reason


def search(request: Request, threads: int, device: str, report: Callable[[Trial], None]) -> list[str]:
    """For each length of the request a line with the largest batch and what limits it; every trial is reported."""
    lines = []
    probe = ReadProbe(device, threads)
    for prompt, answer in dict.fromkeys((case.prompt, case.answer) for case in request.cases):

        def attempt(batch: int, prompt: int = prompt, answer: int = answer) -> Trial:
            trial = _attempt(request, Case(batch, prompt, answer), probe, threads, device)
            report(trial)
            return trial

        best, reason = largest_batch(attempt, request.largest_batch)
        found = "no batch" if best is None else f"batch {best}"
        limit = f"{request.latency_limit_s * 1e3:g} ms"
        lines.append(f"{prompt} + {answer} tokens: {found} is the largest within {limit} per token; {reason}")
    probe.close()
    return lines


def _attempt(request: Request, case: Case, probe: ReadProbe, threads: int, device: str) -> Trial:
    model = replace(request.model, max_batch_size=case.batch)
    try:
        with Worker(OURS, partial(engine_runner.start, model, [case]), threads) as worker:
            test = SpeedTest(request, threads, device, lambda rows: None)
            (row,) = test.measure(case, [worker], probe)
    except NoMemoryError as error:
        return Trial(case.batch, f"memory: batch {case.batch} does not fit ({error})")
    except WorkerError as error:
        if not any(word in str(error) for word in _NO_MEMORY):
            raise
        return Trial(case.batch, f"memory: batch {case.batch} does not fit ({error})")
    return Trial(case.batch, problem_of(row, request.latency_limit_s), row)


def problem_of(row: Row, limit_s: float) -> str:
    """Why the measured batch does not count as within the limit, or ""."""
    summary, batch = row.summary, row.summary.case.batch
    if "preemptions" in summary.note:
        return f"memory: batch {batch} has {summary.note}, as the KV cache has no room for it"
    if summary.note or summary.step_percentiles_s is None:
        return f"batch {batch}: {summary.note or 'one token has no step'}; longer answers, or more memory, would help"
    p90 = summary.step_percentiles_s[1]
    if p90 > limit_s:
        return f"latency: at batch {batch} one step in ten takes more than {p90 * 1e3:.1f} ms"
    return ""
