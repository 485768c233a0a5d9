"""What an evaluation found: on the terminal, in results.json, and in CSVs of the metrics and of each sample."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.files import write_text


@dataclass
class TaskReport:
    """A task's metrics, by names like lm-evaluation-harness's ("acc,none", "acc_stderr,none"), and its samples.

    samples: a row of the CSV each. seconds: what scoring took, compiling excluded. harness: the harness's own results
    of the task; None: a local task.
    """

    name: str
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]
    seconds: float = 0.0
    harness: dict[str, Any] | None = field(default=None, repr=False)


def write_reports(directory: Path, reports: Sequence[TaskReport], configuration: dict[str, Any]) -> list[Path]:
    """Write all files into the directory; returns their paths."""
    files = {directory / "results.json": json.dumps(results(reports, configuration), indent=2, default=str) + "\n"}
    files[directory / "summary.csv"] = _csv(
        [
            {
                "task": report.name,
                "metric": metric.partition(",")[0],
                "value": report.metrics[metric],
                "stderr": report.metrics.get(_stderr(metric), ""),
                "samples": len(report.samples),
                "samples_per_s": _speed(report),
            }
            for report in reports
            for metric in report.metrics
            if "_stderr" not in metric
        ]
    )
    for report in reports:
        files[directory / f"samples_{re.sub(r'[^A-Za-z0-9_.-]', '_', report.name)}.csv"] = _csv(report.samples)
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def results(reports: Sequence[TaskReport], configuration: dict[str, Any]) -> dict[str, Any]:
    """As lm-evaluation-harness writes its results file."""
    merged: dict[str, Any] = {"results": {}, "configs": {}, "versions": {}, "n-shot": {}, "n-samples": {}}
    for report in reports:
        if report.harness is not None:
            for key, value in report.harness.items():
                merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
            continue
        count = len(report.samples)
        merged["results"][report.name] = {"alias": report.name, **report.metrics}
        merged["configs"][report.name] = {"task": report.name, "output_type": "loglikelihood"}
        merged["versions"][report.name] = 1.0
        merged["n-shot"][report.name] = 0
        merged["n-samples"][report.name] = {"original": count, "effective": count}
    return {**merged, "config": configuration}


def print_reports(reports: Sequence[TaskReport]) -> None:
    for report in reports:
        for metric, value in report.metrics.items():
            if "_stderr" in metric or not isinstance(value, float):
                continue
            error = report.metrics.get(_stderr(metric))
            spread = f" ± {error:.4f}" if isinstance(error, float) else ""
            print(f"{report.name + ':':24} {metric.partition(',')[0]} {value:.4f}{spread}")
        print(f"{'':24} {len(report.samples)} samples, {_speed(report):.1f} samples/s")


def _stderr(metric: str) -> str:
    name, _, kind = metric.partition(",")
    return f"{name}_stderr,{kind}"


def _speed(report: TaskReport) -> float:
    return round(len(report.samples) / report.seconds, 2) if report.seconds else 0.0


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
