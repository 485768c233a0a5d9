"""Report of each layer's largest values against float16's: a table, an HTML section, and whether float16 holds them."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from graph_gemma.graph_model.families import Family
from graph_gemma.graph_model.quantizer.largest_values import LargestValues
from graph_gemma.graph_model.residual_scale import FLOAT16_MAX, recommended_exponent

_SETTING = "passes.scale_residual.exponent"
_OTHER_DTYPES = "dtype=bfloat16 or dtype=float32"


@dataclass(frozen=True)
class Float16Report:
    """What the layers reach on calibration texts, and what float16 makes of it."""

    layers: Sequence[LargestValues]
    exponent: int  # of the power of two that the residual stream is divided by; 0: it stays as it is
    scalable: bool  # whether it can be divided at all

    @classmethod
    def of(cls, family: Family, layers: Sequence[LargestValues], exponent: int) -> Float16Report:
        """exponent: what `passes.scale_residual.exponent` is, or will be."""
        return cls(layers, exponent if family.norms_branches else 0, family.norms_branches)

    @property
    def columns(self) -> tuple[str, ...]:
        divided = f", / {2**self.exponent}" if self.exponent else ""
        return "layer", "residual stream", f"in float16{divided}", "branches", "elsewhere", "which is the"

    def rows(self) -> list[tuple[str, ...]]:
        """The texts of the table's cells, under `columns`; what float16 does not hold is marked with a !."""
        return [
            (
                str(index),
                _number(each.stream),
                _marked(each.stream * self._scale),
                _number(each.branch),
                _marked(each.other),
                each.other_at,
            )
            for index, each in enumerate(self.layers)
        ]

    def sentences(self) -> list[str]:
        """Whether float16 holds the model, which exponent is recommended, and a warning for each way to overflow."""
        reached = [max(each.stream, each.branch) for each in self.layers]
        largest, scaled = max(reached), max(reached) * self._scale
        divided = f"; float16 steps divide it by {2**self.exponent}, to {_number(scaled)}" if self.exponent else ""
        found = [f"The residual stream reaches {_number(largest)} in layer {reached.index(largest)}{divided}."]
        if scaled <= FLOAT16_MAX:
            found.append(f"That is {_number(FLOAT16_MAX / scaled)} times below float16's largest number, 65,504.")
        recommended = recommended_exponent(largest)
        if self.scalable:
            found.append(f"Recommended: {_SETTING}={recommended}, which leaves a factor of "
                         f"{_number(FLOAT16_MAX * 2**recommended / largest)} for other texts.")  # fmt: skip
        if scaled > FLOAT16_MAX:
            first = next(index for index, value in enumerate(reached) if value * self._scale > FLOAT16_MAX)
            helps = self.scalable and largest < FLOAT16_MAX * 2**recommended
            why = "" if self.scalable else " Branches are added without a norm, so that nothing can be scaled."
            found.append(f"warning: the residual stream overflows in float16, first in layer {first}.{why} Give "
                         f"{f'{_SETTING}={recommended}, ' if helps else ''}{_OTHER_DTYPES}.")  # fmt: skip
        for index, each in enumerate(self.layers):
            if each.other > FLOAT16_MAX:
                found.append(f"warning: the {each.other_at} of layer {index} overflows in float16 with "
                             f"{_number(each.other)}, which no exponent changes. Give {_OTHER_DTYPES}.")  # fmt: skip
        return found

    def html_section(self) -> str:
        """Paragraphs, a plot of the stream by layer and the table, for a page that has a style of its own."""
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self.rows())
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        return (
            "<h2>Largest values against float16</h2>"
            + "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences())
            + "<p>Logarithmic: the residual stream (grey), as float16 steps hold it (blue), and 65,504 (red).</p>"
            + self._plot()
            + f"<table><tr>{head}</tr>{body}</table>"
        )

    def _plot(self) -> str:
        """Two bars per layer, and a line where float16 ends."""
        left, width, row = 60, 700, 18
        most = math.log2(max(FLOAT16_MAX, *(each.stream for each in self.layers)) * 2)
        bars = []
        for index, each in enumerate(self.layers):
            for value, colour, height in ((each.stream, "#bbbbbb", 14), (each.stream * self._scale, "#3b75af", 7)):
                length = width * math.log2(max(value, 1.0)) / most
                bars.append(f'<rect x="{left}" y="{row * index + 2}" width="{length:.1f}" height="{height}" '
                            f'fill="{colour}"/>')  # fmt: skip
            bars.append(f'<text x="{left - 6}" y="{row * index + 13}" text-anchor="end">{index}</text>')
        limit = left + width * math.log2(FLOAT16_MAX) / most
        height = row * len(self.layers)
        line = f'<line x1="{limit:.1f}" x2="{limit:.1f}" y1="0" y2="{height}" stroke="#c8553d" stroke-width="2"/>'
        return f'<svg width="{left + width}" height="{height}">{"".join(bars)}{line}</svg>'

    @property
    def _scale(self) -> float:
        return float(2.0**-self.exponent)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _marked(value: float) -> str:
    return f"{_number(value)} !" if value > FLOAT16_MAX else _number(value)
