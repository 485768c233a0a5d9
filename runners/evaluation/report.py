"""Reports of an evaluation: on the terminal, a results file, and CSVs of the metrics and of each sample."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.whole_files import write_file
from graph_gemma.runners.io.files import time_stamp


@dataclass
class TaskReport:
    """A task's metrics and samples."""

    name: str
    metrics: dict[str, Any]  # by names like lm-evaluation-harness's: "acc,none", "acc_stderr,none"
    samples: list[dict[str, Any]]  # rows of the CSV, with a harness task per item and filter; none: a group of tasks
    count: int  # of items
    seconds: float = 0.0  # that scoring took, compiling excluded
    # The harness's own results, with the first of its tasks; None: a local task.
    harness: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def samples_per_s(self) -> float | None:
        return round(self.count / self.seconds, 2) if self.seconds else None


def write_reports(directory: Path, reports: Sequence[TaskReport], configuration: dict[str, Any]) -> list[Path]:
    """Write all files into the directory, under names that carry the time, as the harness's do; returns their paths.

    configuration: what goes under "config" in the results file.
    """
    stamp = time_stamp()
    found = results(reports, configuration)
    files = {directory / f"results_{stamp}.json": json.dumps(found, indent=2, default=str) + "\n"}
    files[directory / f"summary_{stamp}.csv"] = _csv(
        [
            {
                "task": report.name,
                "metric": metric.partition(",")[0],
                "filter": metric.partition(",")[2],
                "value": report.metrics[metric],
                "stderr": report.metrics.get(_stderr(metric), ""),
                "samples": report.count,
                "samples_per_s": report.samples_per_s,
            }
            for report in reports
            for metric in report.metrics
            if "_stderr" not in metric
        ]
    )
    for report in reports:
        if report.samples:
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", report.name)
            files[directory / f"samples_{name}_{stamp}.csv"] = _csv(report.samples)
    for path, text in files.items():
        write_file(path, text)
    return list(files)


def results(reports: Sequence[TaskReport], configuration: dict[str, Any]) -> dict[str, Any]:
    """As lm-evaluation-harness lays out its results file."""
    names = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config")
    merged: dict[str, Any] = {name: {} for name in names}
    for report in reports:
        if report.harness is not None:
            for key, value in report.harness.items():
                merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
            continue
        merged["results"][report.name] = {"alias": report.name, **report.metrics, "sample_len": report.count}
        merged["group_subtasks"][report.name] = []
        merged["configs"][report.name] = {"task": report.name, "output_type": "loglikelihood"}
        merged["versions"][report.name] = 1.0
        merged["n-shot"][report.name] = 0
        kinds = {metric.partition(",")[0] for metric in report.metrics if "_stderr" not in metric}
        merged["higher_is_better"][report.name] = {kind: kind == "acc" for kind in sorted(kinds)}
        merged["n-samples"][report.name] = {"original": report.count, "effective": report.count}
    merged["config"] = {**merged["config"], **configuration}
    name = str(configuration["model_args"]["model.path"])
    return {
        **merged,
        "model_source": configuration["model"],
        "model_name": name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name),
        "total_evaluation_time_seconds": str(sum(report.seconds for report in reports)),
    }


def print_reports(reports: Sequence[TaskReport]) -> None:
    """Print each task's metrics, with their standard errors, and its speed."""
    for report in reports:
        for metric, value in report.metrics.items():
            if "_stderr" in metric or not isinstance(value, float):
                continue
            name, _, filter_ = metric.partition(",")
            error = report.metrics.get(_stderr(metric))
            spread = f" ± {error:.4f}" if isinstance(error, float) else ""
            kind = "" if filter_ == "none" else f" ({filter_})"
            print(f"{report.name + ':':24} {name}{kind} {value:.4f}{spread}")
        speed = "" if report.samples_per_s is None else f", {report.samples_per_s:.1f} samples/s"
        print(f"{'':24} {report.count} samples{speed}")


def _stderr(metric: str) -> str:
    name, _, kind = metric.partition(",")
    return f"{name}_stderr,{kind}"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
