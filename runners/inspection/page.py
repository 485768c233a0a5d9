"""One self-contained HTML page about lowered graphs: no network, no script, pictures inline."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from html import escape

from graph_gemma.runners.backends.ascend.printer import list_graph
from graph_gemma.runners.backends.ascend.provenance import origin_of
from graph_gemma.runners.backends.ascend.tensors import tensor_descs
from graph_gemma.runners.inspection.findings import Findings, is_kernel
from graph_gemma.runners.inspection.plots import plots
from graph_gemma.runners.inspection.text import (
    ESTIMATE,
    carrier_rows,
    duration,
    input_rows,
    op_rows,
    quantity,
    unknown,
    views,
)

_STYLE = """
body { font: 14px/1.45 sans-serif; color: #24292f; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d8dee4 }
table { border-collapse: collapse; margin: .6em 0 } svg { width: 100%; height: auto }
td, th { border: 1px solid #d8dee4; padding: .15em .55em; text-align: left; vertical-align: top }
th { background: #f1f4f7 } pre { overflow-x: auto; background: #f8fafc; padding: .6em; font-size: 12px }
details { margin: .3em 0 } summary { cursor: pointer } .wide { overflow-x: auto }
.add { background: #dafbe1 } .del { background: #ffebe9 } .at { color: #8a929a } .note { color: #57606a }
"""


def as_page(found: Sequence[Findings]) -> str:
    """The HTML text: a section per graph, each with plots, tables and the changes from pass to pass."""
    title = "Lowered graphs: " + ", ".join(findings.dump.name for findings in found)
    body = "\n".join(_section(findings) for findings in found)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _section(findings: Findings) -> str:
    dump, memory, cost = findings.dump, findings.memory, findings.cost
    total = cost.total
    facts = [
        ["", "", ""],
        ["time of a step", duration(total.seconds), ESTIMATE],
        ["moved", quantity(total.bytes, "B"), "weights, the caches' contexts, activations"],
        ["computed", quantity(total.matrix_ops, ""), "operations of matrix products; a multiply-add is two"],
        ["inputs", quantity(memory.inputs, "B"), "weights, caches and a step's inputs"],
        ["peak of live tensors", quantity(memory.peak, "B"), f"while {memory.peak_node} runs"],
        [
            "kernels",
            str(findings.kernels),
            f"{findings.weight_copies} copies of weights, {findings.host_inputs} host inputs",
        ],
    ]
    constants = [["constant", "bytes"], *([name, str(size)] for name, size in findings.constants)]
    parts = [
        f"<h2>{escape(dump.name)} on {escape(dump.soc.product)} ({escape(dump.soc.cann_name)})</h2>",
        *(f'<div class="note">{escape(note)}</div>' for note in dump.notes),
        _table(facts),
        plots(findings),
        "<h3>Kernels by type</h3>",
        _table(op_rows(findings)),
        f"<p>Views, which cost nothing: {escape(views(findings))}</p>",
        "<h3>Inputs and outputs</h3><p>&amp; marks what the graph writes by reference.</p>",
        _table(input_rows(findings)),
        f"<p>Outputs: {escape(', '.join(findings.outputs))}</p>",
        "<h3>Attributes that must survive</h3>",
        _table([["attribute", "value", "nodes", "first of them"], *carrier_rows(findings)]),
        _details(f"{len(findings.constants)} constants", _table(constants)),
        _details(f"All {findings.kernels} kernels, in the graph's order", _table(_kernel_rows(findings))),
        _details("The listing", f"<pre>{escape(list_graph(findings.graph))}</pre>"),
    ]
    if findings.unknown:
        parts.append(f"<h3>Op types that are not known here</h3><p>{escape(unknown(findings))}</p>")
    if cost.uncounted:
        parts.append(_table([["not in the estimate", "why"], *map(list, cost.uncounted.items())]))
    if dump.passes:
        parts.append("<h3>From pass to pass</h3>")
        first, text = dump.passes[0]
        parts.append(_details(f"{first}: the captured graph", f"<pre>{escape(text)}</pre>"))
        for (_, before), (name, after) in zip(dump.passes, dump.passes[1:], strict=False):
            parts.append(_difference(name, before, after))
    return "\n".join(parts)


def _kernel_rows(findings: Findings) -> list[list[str]]:
    descs = tensor_descs(findings.graph)
    costs = {cost.name: cost for cost in findings.cost.nodes}
    rows = [["node", "type", "output", "read", "written", "matrix", "vector", "time", "bound", "FX node", "layer"]]
    for node in findings.graph.nodes:
        if not is_kernel(node):
            continue
        cost, origin = costs[node.name], origin_of(node)
        work = cost.work
        rows.append([
            node.name, node.type, str(descs.get((node.name, 0), "?")), quantity(work.read, "B"),
            quantity(work.written, "B"), quantity(work.matrix, ""), quantity(work.vector, ""),
            duration(cost.seconds), cost.bound, origin.fx_node, origin.layer,
        ])  # fmt: skip
    return rows


def _difference(name: str, before: str, after: str) -> str:
    """What a pass changed, as a unified diff."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=2, lineterm=""))[2:]
    removed, added = (sum(line.startswith(sign) for line in lines) for sign in "-+")
    classes = {"+": "add", "-": "del", "@": "at"}
    text = "".join(f'<span class="{classes.get(line[:1], "")}">{escape(line)}</span>\n' for line in lines)
    return _details(f"{name}: {removed} lines less, {added} lines new", f"<pre>{text}</pre>")


def _details(summary: str, content: str) -> str:
    return f'<details><summary>{escape(summary)}</summary><div class="wide">{content}</div></details>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the heading, unless it is empty."""
    heading, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading) if any(heading) else ""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in ([head] if head else []) + lines) + "</table>"
