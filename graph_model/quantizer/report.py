"""Report of a quantized checkpoint: each linear's SQNR, range and outliers, as a table and as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graph_gemma.graph_model.quantization.scheme import ActivationScale
from graph_gemma.graph_model.quantizer.float16_report import Float16Report
from graph_gemma.graph_model.quantizer.ranges import RangeMethod, outlier_ratio
from graph_gemma.graph_model.quantizer.smoothing import quality

_TOKENS = 512  # most that products are compared on


@dataclass(frozen=True)
class LinearReport:
    """A linear before and after smoothing. Without calibration only `sqnr_after` is known, and is of the weights."""

    name: str
    sqnr_after: float  # of its output, dB
    low: float | None = None  # of its input's range
    high: float | None = None
    outliers_before: float | None = None  # see `ranges.outlier_ratio`
    outliers_after: float | None = None
    sqnr_before: float | None = None
    strength: float | None = None  # of the migration; None: nothing was moved


@dataclass(frozen=True)
class QuantizationReport:
    """What is shown about a quantized checkpoint."""

    linears: Sequence[LinearReport]
    float16: Float16Report | None  # None: the scheme is not calibrated, and nothing was computed

    def html(self, title: str) -> str:
        """All of it as a page."""
        return html_page(title, linears_section(self.linears), self.float16.html_section() if self.float16 else "")


def report_linear(
    name: str,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    scale: ActivationScale,
    strength: float | None,
    dtype: torch.dtype,
    method: RangeMethod,
) -> LinearReport:
    """What quantizing does to a calibrated linear; before, after: input and weight without and with smoothing."""
    (x, weight), (smoothed_x, smoothed_weight) = before, after
    tokens = slice(None, None, -(-x.shape[0] // _TOKENS))
    # The same numbers, but for rows that were divided because the next linear's input is smoothed.
    exact, smoothed = x[tokens] @ weight.t(), smoothed_x[tokens] @ smoothed_weight.t()
    return LinearReport(
        name=name,
        sqnr_after=quality(smoothed_x[tokens], smoothed_weight, smoothed, dtype, method),
        low=(-128 - scale.offset) * scale.scale,
        high=(127 - scale.offset) * scale.scale,
        outliers_before=outlier_ratio(x),
        outliers_after=outlier_ratio(smoothed_x),
        sqnr_before=quality(x[tokens], weight, exact, dtype, method),
        strength=strength,
    )


COLUMNS = ("linear", "range", "outliers", "smoothed", "SQNR dB", "smoothed", "strength")


def table_rows(reports: Sequence[LinearReport]) -> list[tuple[str, ...]]:
    """The texts of the table's cells, under COLUMNS."""
    return [
        (
            report.name.removeprefix("model."),
            "-" if report.low is None else f"{report.low:.3g} .. {report.high:.3g}",
            _number(report.outliers_before),
            _number(report.outliers_after),
            _number(report.sqnr_before),
            _number(report.sqnr_after),
            _number(report.strength, 2),
        )
        for report in reports
    ]


def html_page(title: str, *sections: str) -> str:
    """A page that needs nothing else."""
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body,text{font:11px sans-serif}td,th{padding:1px 8px;text-align:right}td:first-child{text-align:left}"
        f"</style><h1>{html.escape(title)}</h1>{''.join(sections)}\n"
    )


def linears_section(reports: Sequence[LinearReport]) -> str:
    """A bar per linear for SQNR before (grey) and after (blue), and the table."""
    top = max([1.0, *(min(report.sqnr_after, 100.0) for report in reports)])
    bars = []
    for index, report in enumerate(reports):
        y = 18 * index
        for value, colour, height in ((report.sqnr_after, "#3b75af", 12), (report.sqnr_before, "#bbbbbb", 5)):
            width = 0.0 if value is None else max(0.0, min(value, top)) / top * 480
            bars.append(f'<rect x="330" y="{y + 2}" width="{width:.1f}" height="{height}" fill="{colour}"/>')
        bars.append(f'<text x="322" y="{y + 12}" text-anchor="end">{html.escape(report.name)}</text>')
        bars.append(f'<text x="818" y="{y + 12}">{_number(report.sqnr_after)} dB</text>')
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table_rows(reports)
    )
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    return (
        "<p>Signal to quantization noise of each linear's output: as it was (grey), as it is written (blue).</p>"
        f'<svg width="900" height="{18 * len(reports)}">{"".join(bars)}</svg><table><tr>{head}</tr>{rows}</table>'
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
