"""The files of a benchmark: benchmark.csv with the reference's columns first, and benchmark.html with a plot."""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass
from pathlib import Path

from runners.bench.timing import Summary
from runners.files import write_text


@dataclass(frozen=True)
class Row:
    """A line of the results. bytes_per_s: what the median step read; bandwidth: what the machine can (None: unknown).

    peak_bytes: most memory that this process had held when the runner was warm; None where others share the process.
    """

    model: str
    summary: Summary
    bytes_per_s: float | None
    bandwidth: float | None
    peak_bytes: int | None

    def cells(self) -> dict[str, str]:
        """Column -> text. The first nine columns are those of MindIE-LLM's performance tests."""
        s, case = self.summary, self.summary.case
        tokens = case.batch * case.answer
        return {
            "Model": self.model,
            "Batchsize": str(case.batch),
            "In_seq": str(case.prompt),
            "Out_seq": str(case.answer),
            "Total time(s)": f"{s.total_s:.4f}",
            "First token time(ms)": f"{s.first_s * 1e3:.3f}",
            "Non-first token time(ms)": f"{s.step_s * 1e3:.3f}",
            "Non-first token Throughput(Tokens/s)": f"{case.batch / s.step_s:.3f}" if s.step_s else "",
            "Throughput(Tokens/s)": f"{tokens / s.total_s:.3f}",
            "Runner": s.runner,
            "Prefill(Tokens/s)": f"{case.batch * case.prompt / s.first_s:.1f}",
            "First token min(ms)": f"{s.first_range_s[0] * 1e3:.3f}",
            "First token max(ms)": f"{s.first_range_s[1] * 1e3:.3f}",
            "Non-first token min(ms)": f"{s.step_range_s[0] * 1e3:.3f}",
            "Non-first token max(ms)": f"{s.step_range_s[1] * 1e3:.3f}",
            "Step p50(ms)": f"{s.step_percentiles_s[0] * 1e3:.3f}",
            "Step p90(ms)": f"{s.step_percentiles_s[1] * 1e3:.3f}",
            "Step p99(ms)": f"{s.step_percentiles_s[2] * 1e3:.3f}",
            "Achieved(GB/s)": _giga(self.bytes_per_s),
            "Read bandwidth(GB/s)": _giga(self.bandwidth),
            "Share of bound": f"{self.bytes_per_s / self.bandwidth:.2f}" if self.bytes_per_s and self.bandwidth else "",
            "Peak memory(MB)": "" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:.0f}",
        }

    def line(self) -> str:
        """The figures in one line, for the terminal."""
        s, case = self.summary, self.summary.case
        text = (
            f"{s.runner}, batch {case.batch}, {case.prompt} + {case.answer}: first token {s.first_s * 1e3:.1f} ms "
            f"({s.first_range_s[0] * 1e3:.1f} to {s.first_range_s[1] * 1e3:.1f})"
        )
        if s.step_s:
            text += (
                f", then {s.step_s * 1e3:.1f} ms per token ({s.step_range_s[0] * 1e3:.1f} to "
                f"{s.step_range_s[1] * 1e3:.1f}), {case.batch / s.step_s:.1f} tokens/s"
            )
        if self.bytes_per_s and self.bandwidth:
            text += f", reads {_giga(self.bytes_per_s)} of {_giga(self.bandwidth)} GB/s"
        return text


def write_results(directory: Path, rows: list[Row]) -> list[Path]:
    """Write both files, each at once or not at all; returns their paths."""
    cells = [row.cells() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cells[0]))
    writer.writeheader()
    writer.writerows(cells)
    files = {directory / "benchmark.csv": text.getvalue(), directory / "benchmark.html": _page(cells)}
    for path, content in files.items():
        write_text(path, content)
    return list(files)


def _giga(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _page(cells: list[dict[str, str]]) -> str:
    """A page with one bar per row, of its throughput after the first token, and the table."""
    values = [float(row["Non-first token Throughput(Tokens/s)"] or 0) for row in cells]
    scale = 500 / (max(values) or 1)
    bars = []
    for index, (row, value) in enumerate(zip(cells, values, strict=True)):
        label = html.escape(f"{row['Runner']}, batch {row['Batchsize']}, {row['In_seq']} + {row['Out_seq']}")
        y = 24 * index
        bars.append(f'<text x="0" y="{y + 15}">{label}</text>')
        bars.append(f'<rect x="320" y="{y + 2}" width="{value * scale:.1f}" height="18" fill="steelblue"/>')
        bars.append(f'<text x="{325 + value * scale:.1f}" y="{y + 15}">{value:.1f}</text>')
    head = "".join(f"<th>{html.escape(name)}</th>" for name in cells[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row.values()) + "</tr>" for row in cells)
    return (
        '<!doctype html><meta charset="utf-8"><title>Benchmark</title>\n'
        "<style>body,svg{font:13px sans-serif}td,th{padding:2px 8px;text-align:right}</style>\n"
        "<h1>Tokens per second after the first token</h1>\n"
        f'<svg width="900" height="{24 * len(cells)}">{"".join(bars)}</svg>\n'
        f"<table><tr>{head}</tr>{body}</table>\n"
    )
