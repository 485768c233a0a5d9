"""Measure accuracy and perplexity: python runners/evaluate.py [SETTING=VALUE ...]."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.evaluation.report import TaskReport
    from graph_gemma.runners.settings.declared.evaluate import EvaluateSettings
    from graph_gemma.runners.settings.model_settings import ModelSettings


def evaluate(settings: EvaluateSettings) -> None:
    """Run the tasks, the dataset and the text that the settings name; print and write the reports."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_gemma.runners.evaluation.harness import check_installed
    from graph_gemma.runners.llm.ranks import on_ranks
    from graph_gemma.runners.settings.model_settings import resolve_settings, writable_directory

    tasks, limit = list(settings.tasks), settings.limit
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
    from graph_gemma.runners.evaluation.report import print_reports, write_reports
    from graph_gemma.runners.llm import LLM

    with LLM(model) as llm:
        if llm.tokenizer is None:
            raise UserError("evaluate.py scores texts, and without model.path there is no tokenizer. Give model.path.")
        reports = [report for job in jobs for report in _timed(llm, job)]
        if tasks:
            from graph_gemma.runners.evaluation.harness import run_tasks

            reports += _timed(llm, lambda llm: run_tasks(llm, tasks, limit))
        backend = llm.loaded.backend
    print(f"{'backend:':24} {backend}")
    print_reports(reports)
    files = write_reports(directory, reports, _configuration(model, backend, limit))
    print(f"written to {directory}: {', '.join(file.name for file in files)}")


def _local_jobs(
    settings: EvaluateSettings, limit: int | None, default: bool
) -> list[Callable[[Any], list[TaskReport]]]:
    """What is asked for besides the harness's tasks; its data is read here. The demo's items if nothing else is."""
    from graph_gemma.runners.evaluation.items import demo_items, read_items
    from graph_gemma.runners.evaluation.local import boolq, perplexity

    jobs: list[Callable[[Any], list[TaskReport]]] = []
    if settings.dataset is not None:
        file = Path(settings.dataset).expanduser()
        items = read_items(file)[:limit]
        jobs.append(lambda llm: [boolq(llm, file.name, items)])
    if settings.perplexity is not None:
        text = Path(settings.perplexity).expanduser()
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


if __name__ == "__main__":
    main(evaluate, "evaluate")
