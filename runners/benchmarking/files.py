"""Writing results: a CSV file, and a page with the same table and a plot."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from graph_gemma.graph_model.whole_files import write_file

Cells = Mapping[str, str]


def write_csv(path: Path, rows: Sequence[Cells], environment: Cells) -> None:
    """Write the rows, each followed by what the run was measured with; at once or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0], *environment])
    writer.writeheader()
    writer.writerows({**row, **environment} for row in rows)
    write_file(path, text.getvalue())


def write_page(path: Path, rows: Sequence[Cells], environment: Cells, measure: str, label: Sequence[str]) -> None:
    """Write a page: a bar per row of its column `measure`, named by its columns `label`, and the table."""
    values = [float(row[measure] or 0) for row in rows]
    scale = 500 / (max(values) or 1)
    bars = []
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        y = 24 * index
        name = html.escape(", ".join(row[column] for column in label))
        bars.append(f'<text x="0" y="{y + 15}">{name}</text>')
        bars.append(f'<rect x="420" y="{y + 2}" width="{value * scale:.1f}" height="18" fill="steelblue"/>')
        bars.append(f'<text x="{425 + value * scale:.1f}" y="{y + 15}">{value:.1f}</text>')
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
    facts = "".join(f"<li>{html.escape(name)}: {html.escape(text)}</li>" for name, text in environment.items())
    write_file(
        path,
        '<!doctype html><meta charset="utf-8"><title>Benchmark</title>\n'
        "<style>body,svg{font:13px sans-serif}td,th{padding:2px 8px;text-align:right}</style>\n"
        f"<h1>{html.escape(measure)}</h1>\n<p>{html.escape(', '.join(label))}</p>\n"
        f'<svg width="1000" height="{24 * len(rows)}">{"".join(bars)}</svg>\n'
        f"<ul>{facts}</ul>\n<table><tr>{head}</tr>{body}</table>\n",
    )
