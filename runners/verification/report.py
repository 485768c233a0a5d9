"""The report of runners/verify.py, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.whole_files import write_file
from graph_gemma.runners.backends.ascend.checked_step import Findings
from graph_gemma.runners.verification.acceptance import OpResult

_ON_DEVICE = (
    "Each op ran alone, and each step whole, on the device; both are compared with the interpreter, and the "
    "interpreter with independent formulas and CPU kernels."
)
_ON_STANDIN = (
    "NO NPU WAS USED. Each op of the graphs ran alone in the GE interpreter and is compared with an independent "
    "formula; each step ran whole in the interpreter and is compared, node by node, with the FX graph that was "
    "lowered, run by CPU kernels. Nothing here says what a device computes: run this command where CANN is."
)


@dataclass(frozen=True)
class StepResult:
    """What running a bucket's steps showed."""

    bucket: str
    findings: Findings


@dataclass(frozen=True)
class Report:
    """What running the ops and steps of a model showed."""

    on_standin: bool
    backend: str  # its description
    device: dict[str, str]  # name and CANN's version, of a device
    versions: dict[str, str]
    failures: list[str]  # a text for each thing that is wrong
    ops: list[OpResult]
    steps: list[StepResult]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def where(self) -> str:
        return "stand-in" if self.on_standin else "device"

    @property
    def statement(self) -> str:
        """What was compared with what."""
        return _ON_STANDIN if self.on_standin else _ON_DEVICE


def make_directory(directory: Path) -> None:
    """Make the report's directory before anything is run. Raises UserError if it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(directory, error) from None


def write_report(report: Report, directory: Path) -> str:
    """Write report.json and report.txt; returns the text. Raises UserError."""
    summary = {"passed": report.passed, "where": report.where, "statement": report.statement}
    text = report_text(report)
    try:
        write_file(directory / "report.json", json.dumps({**summary, **asdict(report)}, indent=1) + "\n")
        write_file(directory / "report.txt", text)
    except OSError as error:
        raise _unwritable(directory, error) from None
    return text


def _unwritable(directory: Path, error: OSError) -> UserError:
    return UserError(f"report_dir: {directory} cannot be written ({error}). Name another directory.")


def report_text(report: Report) -> str:
    """The report for a reader: a line per op type and per step, then what failed.

    Columns. own: the cases of the configured model's steps; others are those of representative ones. formula: the
    interpreter's largest difference from the formula; device: the device's from the interpreter. Both are relative to
    the largest value, of integers the share that differs.
    """
    lines = [report.backend, report.statement, ""]
    lines += [f"{name}: {value}" for name, value in {**report.device, **report.versions}.items()]
    device = "" if report.on_standin else f"{'device':>10}"
    lines += ["", f"{'op type':28}{'cases':>6}{'own':>6}{'formula':>10}{device}{'allowed':>10}"]
    buckets = {step.bucket for step in report.steps}
    for op_type in dict.fromkeys(result.type for result in report.ops):
        results = [result for result in report.ops if result.type == op_type]
        own = sum(result.step in buckets for result in results)
        line = f"{op_type:28}{len(results):6}{own:6}{_largest(result.formula for result in results):>10}"
        if not report.on_standin:
            line += f"{_largest(result.engine for result in results):>10}"
        line += f"{max(result.allowed for result in results):10.0e}"
        lines.append(line + ("  DIFFERS" if any(result.problem for result in results) else ""))
    columns = f"{'runs':>6}{'nodes':>7}{'error':>10}{'tokens':>8}{'ties':>6}"
    lines += ["", f"{'step':34}{columns}"]
    for step in report.steps:
        found = step.findings
        line = f"{step.bucket:34}{found.runs:6}{found.nodes:7}{found.error:10.1e}{found.tokens:8}{found.ties:6}"
        lines.append(line + ("  DIFFERS" if found.problems else ""))
    lines += ["", *(f"FAILED {failure}" for failure in report.failures)]
    lines.append(f"{'passed' if report.passed else 'FAILED'}, on the {report.where}")
    return "\n".join(lines) + "\n"


def _largest(errors: Iterable[float | None]) -> str:
    present = [error for error in errors if error is not None]
    return f"{max(present):.1e}" if present else "-"
