"""The rows of benchmark.csv: the reference's columns first (docs/benchmark.md explains all of them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Summary

STEP_RATE = "Non-first token Throughput(Tokens/s)"
RATE = "Throughput(Tokens/s)"
AVERAGES = ("Non-first token Throughput Average(Tokens/s)", "E2E Throughput Average(Tokens/s)")


@dataclass(frozen=True)
class Row:
    """A case measured with one runner."""

    model: str
    runner: str
    summary: Summary
    facts: Facts
    bandwidth: tuple[float, float, float]  # of reads in between, bytes/s: median, smallest, largest
    peak_bytes: int  # most memory of the runner's process
    equal_tokens: float | None = None  # share of the answers before the first token that differs from ours; None: ours
    round: int = 1  # runners of one round took turns

    @property
    def achieved(self) -> float | None:
        """Bytes/s that the median step must have read."""
        step_s = self.summary.step_s
        return self.facts.decode_step_bytes(self.summary.case) / step_s if step_s else None

    @property
    def share_of_bound(self) -> float | None:
        return self.achieved / self.bandwidth[0] if self.achieved else None

    @property
    def tokens_per_s(self) -> float:
        case = self.summary.case
        return case.batch * case.answer / self.summary.total_s

    @property
    def step_tokens_per_s(self) -> float | None:
        return self.summary.case.batch / self.summary.step_s if self.summary.step_s else None

    def cells(self) -> dict[str, str]:
        """Column -> text; `cells_of` fills the averages in."""
        s, case, facts = self.summary, self.summary.case, self.facts
        step_range, percentiles = s.step_range_s or (None, None), s.step_percentiles_s or (None, None, None)
        return {
            "Model": self.model,
            "Batchsize": str(case.batch),
            "In_seq": str(case.prompt),
            "Out_seq": str(case.answer),
            "Total time(s)": f"{s.total_s:.4f}",
            "First token time(ms)": _milli(s.first_s),
            "Non-first token time(ms)": _milli(s.step_s),
            STEP_RATE: _number(self.step_tokens_per_s, 3),
            RATE: _number(self.tokens_per_s, 3),
            **dict.fromkeys(AVERAGES, ""),
            "Runner": self.runner,
            "Precision": facts.precision,
            "Round": str(self.round),
            "Prefill(Tokens/s)": f"{case.batch * case.prompt / s.prefill_s:.1f}",
            "First token min(ms)": _milli(s.first_range_s[0]),
            "First token max(ms)": _milli(s.first_range_s[1]),
            "First token mean of requests(ms)": _milli(s.first_mean_s),
            "Non-first token min(ms)": _milli(step_range[0]),
            "Non-first token max(ms)": _milli(step_range[1]),
            "Step p50(ms)": _milli(percentiles[0]),
            "Step p90(ms)": _milli(percentiles[1]),
            "Step p99(ms)": _milli(percentiles[2]),
            "Step reads(MB)": f"{facts.decode_step_bytes(case) / 1e6:.3f}",
            "Achieved(GB/s)": _giga(self.achieved),
            "Read bandwidth(GB/s)": _giga(self.bandwidth[0]),
            "Read bandwidth min(GB/s)": _giga(self.bandwidth[1]),
            "Read bandwidth max(GB/s)": _giga(self.bandwidth[2]),
            "Share of bound": _number(self.share_of_bound, 3),
            "Weights(MB)": f"{facts.weight_bytes / 1e6:.3f}",
            "Peak memory(MB)": f"{self.peak_bytes / 1e6:.0f}",
            "Peak / weights": f"{self.peak_bytes / facts.weight_bytes:.2f}",
            "Equal tokens": _number(self.equal_tokens, 3),
            "Note": s.note,
            "Details": facts.details,
        }

    def line(self) -> str:
        """The figures in one line, for the terminal."""
        s = self.summary
        low, high = s.first_range_s
        text = (
            f"{self.runner} ({self.facts.precision}), {s.case}: first token {s.first_s * 1e3:.1f} ms "
            f"({low * 1e3:.1f} to {high * 1e3:.1f})"
        )
        if s.step_s is not None and s.step_range_s is not None:
            low, high = s.step_range_s
            text += f", then {s.step_s * 1e3:.1f} ms per token ({low * 1e3:.1f} to {high * 1e3:.1f}), "
            text += (
                f"{self.step_tokens_per_s:.1f} tokens/s, reads {_giga(self.achieved)} of {_giga(self.bandwidth[0])} "
            )
            text += f"GB/s ({self.share_of_bound:.0%})"
        text += f"; peak {self.peak_bytes / 1e6:.0f} MB, {self.peak_bytes / self.facts.weight_bytes:.2f} x the weights"
        return "; ".join(part for part in (text, s.note, self.facts.details) if part)


def cells_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The rows' cells. As in the reference, the last row of a runner and batch size has the averages over its cases."""
    cells = [row.cells() for row in rows]
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.runner, row.round, row.summary.case.batch), []).append(index)
    for indices in groups.values():
        rates = [rate for index in indices if (rate := rows[index].step_tokens_per_s) is not None]
        cells[indices[-1]][AVERAGES[0]] = _number(mean(rates) if rates else None, 3)
        cells[indices[-1]][AVERAGES[1]] = _number(mean(rows[index].tokens_per_s for index in indices), 3)
    return cells


def _milli(value: float | None) -> str:
    return "" if value is None else f"{value * 1e3:.3f}"


def _giga(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
