"""Show the figures of a lowered graph as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graph_gemma.graph_model.ascend.ge_graph import FREE
from graph_gemma.runners.backends.ascend.printer import COPIES
from graph_gemma.runners.backends.ascend.provenance import origin_of
from graph_gemma.runners.inspection.findings import Findings, slowest

ESTIMATE = "estimates by peak rates (a roofline): a lower bound, not a measurement"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def as_text(findings: Findings, top: int) -> str:
    """A report of sections. top: how many of the slowest nodes are listed."""
    dump, memory, cost = findings.dump, findings.memory, findings.cost
    total = cost.total
    rates = dump.soc.rates
    copies = ", ".join(f"{findings.types.get(name, 0)} {name}" for name in COPIES)
    sections = [
        [f"== {dump.name} on {dump.soc.product} ({dump.soc.cann_name}) ==", *(f"   {note}" for note in dump.notes)],
        [f"{findings.kernels} kernels; {copies}; {findings.weight_copies} copies of weights, "
         f"{findings.host_inputs} inputs on the host"],
        ["Kernels by type", *table(op_rows(findings)), f"  views, which cost nothing: {views(findings)}"],
        ["Inputs (& marks what the graph writes by reference)", *table(input_rows(findings))],
        ["Outputs", *(f"  {output}" for output in findings.outputs)],
        [f"Constants: {len(findings.constants)}, {quantity(sum(size for _, size in findings.constants), 'B')}"],
        ["Attributes that must survive", *table(carrier_rows(findings))],
        ["Memory", *table([
            ["inputs", quantity(memory.inputs, "B")],
            ["peak of live tensors", f"{quantity(memory.peak, 'B')} at {memory.peak_node}"],
            ["of which", ", ".join(f"{name} {quantity(size, 'B')}" for name, size in list(memory.at_peak.items())[:3])],
        ])],
        [f"Cost: {ESTIMATE}", *table([
            ["one step", f"{duration(total.seconds)} at {rates.bandwidth:g} GB/s, {rates.fp16_tflops:g} Tflop/s"],
            ["moved", quantity(total.bytes, "B")],
            ["computed", f"{quantity(total.matrix_ops, '')} in products, {quantity(total.vector_ops, '')} on vectors"],
        ])],
        [f"The {top} slowest nodes", *table(node_rows(findings, top))],
    ]  # fmt: skip
    if findings.unknown:
        sections.append(["Op types that are not known here", f"  {unknown(findings)}"])
    if cost.uncounted:
        sections.append(["Not in the estimate", *(f"  {name}: {why}" for name, why in cost.uncounted.items())])
    return "\n\n".join("\n".join(section) for section in sections)


def op_rows(findings: Findings) -> list[list[str]]:
    """Op type, nodes, bytes, estimated time, then the nodes of one layer of each run of equal layers."""
    times = findings.cost.by(lambda node: node.type)
    rows = [["type", "nodes", "moved", "time", *findings.columns]]
    kernels = {name: count for name, count in findings.types.items() if name not in FREE}
    for name, count in sorted(kernels.items(), key=lambda item: (-times[item[0]].seconds, item[0])):
        each = [str(counts[name] or "-") for counts in findings.columns.values()]
        rows.append([name, str(count), quantity(times[name].bytes, "B"), duration(times[name].seconds), *each])
    return rows


def views(findings: Findings) -> str:
    return ", ".join(f"{count} {name}" for name, count in findings.types.items() if name in FREE) or "none"


def unknown(findings: Findings) -> str:
    """What cannot be said about nodes of unknown op types."""
    found = ", ".join(f"{count} {name}" for name, count in findings.unknown.items())
    return f"{found}: whether they write inputs by reference is unknown, and no input above is marked for them"


def input_rows(findings: Findings) -> list[list[str]]:
    rows = [["", "inputs", "kind", "tensor", "bytes", "first of them"]]
    for group in findings.inputs:
        by = f", written by {', '.join(group.writers)}" if group.writers else ""
        mark = "&" if group.writers else ""
        rows.append([mark, str(group.count), group.kind or "?", str(group.desc), quantity(group.bytes, "B"),
                     _shortened(group.example) + by])  # fmt: skip
    return rows


def carrier_rows(findings: Findings) -> list[list[str]]:
    """Attribute, value, how many nodes carry it, and the first of them with its layer."""
    if not findings.carriers:
        return [["the dump does not say which nodes carry them (it was not made by dump_dir)"]]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for carrier in findings.carriers:
        is_input = carrier.node.type == "Data"
        how = (
            carrier.how if not is_input or carrier.attribute != "norm_offset" else "its weight is 1 + the checkpoint's"
        )
        where = f"{carrier.node.type} {carrier.node.name}"
        layer = origin_of(carrier.node).layer
        key = (carrier.attribute, carrier.node.type, how)
        groups.setdefault(key, []).append(f"{where} in {layer}" if layer else where)
    return [[attribute, how, f"{len(nodes)} x", nodes[0]] for (attribute, _, how), nodes in groups.items()]


def node_rows(findings: Findings, top: int) -> list[list[str]]:
    nodes = findings.graph.by_name()
    rows = [["node", "time", "bound by", "moved", "operations", "layer"]]
    for cost in slowest(findings.cost, top):
        work = cost.work
        rows.append([cost.name, duration(cost.seconds), cost.bound, quantity(work.read + work.written, "B"),
                     quantity(work.matrix + work.vector, ""), origin_of(nodes[cost.name]).layer])  # fmt: skip
    return rows


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows as lines in columns; all but the last column are padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [indent + "  ".join(_padded(row, widths)).rstrip() for row in rows]


def quantity(value: float, unit: str) -> str:
    """A number with three digits and a decimal prefix: 1.23 MB."""
    index = 0
    while value >= 999.5 and index < len(_UNITS) - 1:
        value, index = value / 1000, index + 1
    prefix = _UNITS[index].removesuffix("B")
    shown = f"{value:.3g}"
    return f"{shown} {prefix}{unit}".strip()


def duration(seconds: float) -> str:
    """Seconds as us or ms."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us" if seconds else "-"


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    return (cell.ljust(width) for cell, width in zip(row, widths, strict=True))


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
