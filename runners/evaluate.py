"""Measure accuracy and perplexity: python runners/evaluate.py [SETTING=VALUE ...]."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_model.errors import UserError
from runners.command_line.entry import main

if TYPE_CHECKING:
    from runners.evaluation.report import TaskReport
    from runners.settings import ModelSettings


def evaluate(settings: Any) -> None:
    """Score what is asked for, write the reports."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from runners.evaluation.harness import check_installed
    from runners.llm.ranks import on_ranks
    from runners.settings import resolve_settings, writable_directory

    tasks, limit = _tasks(settings.tasks), _limit(settings.limit)
    if tasks:
        check_installed()
    model = resolve_settings(settings)
    jobs = _local_jobs(settings, limit, default=not tasks)
    directory = writable_directory("results_dir", settings.results_dir)
    on_ranks(model, lambda: _measure(model, jobs, tasks, limit, directory))


def _measure(
    model: ModelSettings,
    jobs: list[Callable[[Any], list[TaskReport]]],
    tasks: list[str],
    limit: int | None,
    directory: Path,
) -> None:
    from runners.evaluation.report import print_reports, write_reports
    from runners.llm import LLM

    with LLM(model) as llm:
        if llm.tokenizer is None:
            raise UserError("evaluate.py scores texts, and without model.path there is no tokenizer. Give model.path.")
        reports = [report for job in jobs for report in _timed(llm, job)]
        if tasks:
            from runners.evaluation.harness import run_tasks

            reports += _timed(llm, lambda llm: run_tasks(llm, tasks, limit))
        backend = llm.loaded.backend
    print(f"{'backend:':24} {backend}")
    print_reports(reports)
    files = write_reports(directory, reports, _configuration(model, backend, limit))
    print(f"written to {directory}: {', '.join(file.name for file in files)}")


def _local_jobs(settings: Any, limit: int | None, default: bool) -> list[Callable[[Any], list[TaskReport]]]:
    """What is asked for besides the harness's tasks; its data is read here. The demo's items if nothing else is."""
    from runners.evaluation.items import demo_items, read_items
    from runners.evaluation.local import boolq, perplexity
    from runners.settings.values import text_or_none

    jobs: list[Callable[[Any], list[TaskReport]]] = []
    dataset, perplexity_of = (text_or_none(name, settings[name]) for name in ("dataset", "perplexity"))
    if dataset is not None:
        file = Path(dataset).expanduser()
        items = read_items(file)[:limit]
        jobs.append(lambda llm: [boolq(llm, file.name, items)])
    if perplexity_of is not None:
        text = Path(perplexity_of).expanduser()
        jobs.append(lambda llm: [perplexity(llm, text)])
    if default and not jobs:
        held_out = demo_items()[:limit]
        jobs.append(lambda llm: [boolq(llm, "demo", held_out)])
    return jobs


def _timed(llm: Any, job: Callable[[Any], list[TaskReport]]) -> list[TaskReport]:
    """Run a job; its reports share its time, less what compiling took, by their samples."""
    compiling, start = llm.loaded.model.report.seconds, time.perf_counter()
    reports = job(llm)
    seconds = time.perf_counter() - start - (llm.loaded.model.report.seconds - compiling)
    tasks = [report for report in reports if report.samples]  # not the groups of tasks
    total = sum(report.count for report in tasks)
    for report in tasks:
        report.seconds = seconds * report.count / total
    return reports


def _configuration(model: ModelSettings, backend: str, limit: int | None) -> dict[str, Any]:
    """What decides the figures, under the names of the settings."""
    quantization, path = model.quantization, model.checkpoint_dir
    names = ("dtype", "norm", "world_size", "block_size", "max_batch_size", "max_prefill_batch_size")
    arguments = {
        "model.path": None if path is None else str(path),
        "weights": "random" if model.random_weights else "checkpoint",
        "backend": model.backend,
        "soc": None if model.soc is None else model.soc.name,
        "quant.scheme": None if quantization is None else quantization.scheme,
        "quant.linears": [] if quantization is None else list(quantization.linears),
        "quant.kv8": quantization is not None and quantization.kv8,
        **{name: getattr(model, name) for name in (*names, "max_prefill_tokens", "max_seq_len")},
    }
    return {"model": "graph_gemma", "model_args": arguments, "backend": backend, "limit": limit}


def _tasks(value: Any) -> list[str]:
    if value is None:
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"tasks is {names!r}; it must be a list of names of lm-evaluation-harness, [boolq,lambada].")
    return list(names)


def _limit(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"limit is {value!r}; it must be an integer of at least 1, or null.")
    return value


if __name__ == "__main__":
    main(evaluate, "evaluate")
