"""Plot live memory over the order of nodes and time by node, as one SVG picture."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from graph_gemma.runners.backends.ascend.roofline import NodeCost
from graph_gemma.runners.inspection.findings import Findings, is_kernel
from graph_gemma.runners.inspection.text import duration, quantity

COLOURS = {"memory": "#3572b0", "matrix": "#c8553d", "vector": "#d9a13b", "link": "#7b5aa6"}
_WIDTH, _LEFT, _RIGHT = 960, 80, 16
_PANEL, _GAP, _TOP = 170, 64, 48
_PLOT = _WIDTH - _LEFT - _RIGHT
_INK, _GREY, _BAND = "#24292f", "#8a929a", "#f1f4f7"


def plots(findings: Findings) -> str:
    """An SVG element: above, live memory while each kernel runs; below, its estimated time, by what bounds it.

    Bands mark every second decoder layer. Nothing is loaded from elsewhere.
    """
    nodes = findings.graph.by_name()
    steps = zip(findings.memory.order, findings.memory.live, strict=True)
    held = {name: live for name, live in steps if is_kernel(nodes[name])}
    order = list(held)
    height = _TOP + 2 * _PANEL + _GAP + 40
    costs = {cost.name: cost for cost in findings.cost.nodes}
    second = _TOP + _PANEL + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}" role="img">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_panel(findings.layer_of, order, _TOP, "Live memory over the order of nodes"
                f" (peak {quantity(findings.memory.peak, 'B')} at {findings.memory.peak_node})"),
        *_memory(list(held.values()), order, _TOP),
        *_panel(findings.layer_of, order, second,
                f"Estimated time by node ({duration(findings.cost.total_s)} in all, a lower bound)"),
        *_times([costs[name] for name in order], second),
        *_legend(findings.cost.nodes, second),
        f'<text x="{_LEFT}" y="{second + _PANEL + 18}">first kernel</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{second + _PANEL + 18}" text-anchor="end">kernel {len(order)}</text>',
        f'<text x="{_LEFT}" y="18" font-size="14" font-weight="bold">{escape(findings.dump.name)} on '
        f"{escape(findings.dump.soc.product)}</text>",
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts)


def _panel(layer_of: dict[str, int | None], order: list[str], top: float, title: str) -> list[str]:
    """Frame, title and the bands of decoder layers."""
    parts = [f'<text x="{_LEFT}" y="{top - 8}">{escape(title)}</text>']
    start = 0
    for index in range(1, len(order) + 1):
        layer = layer_of[order[start]]
        if index < len(order) and layer_of[order[index]] == layer:
            continue
        if layer is not None and layer % 2 == 0:
            left, right = _x(start, order), _x(index, order)
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{_PANEL}" fill="{_BAND}">'
                f"<title>layer {layer}</title></rect>"
            )
        start = index
    frame = f'fill="none" stroke="{_GREY}" stroke-width="0.5"'
    parts.append(f'<rect x="{_LEFT}" y="{top}" width="{_PLOT}" height="{_PANEL}" {frame}/>')
    return parts


def _memory(live: list[int], order: list[str], top: float) -> list[str]:
    largest = max(live, default=0) or 1
    bottom = top + _PANEL
    points = [f"M{_LEFT},{bottom}"]
    for index, size in enumerate(live):
        y = bottom - size / largest * (_PANEL - 8)
        points.append(f"L{_x(index, order):.1f},{y:.1f}L{_x(index + 1, order):.1f},{y:.1f}")
    points.append(f"L{_x(len(order), order):.1f},{bottom}Z")
    area = f'<path d="{"".join(points)}" fill="#9cc3e6" stroke="#3572b0" stroke-width="0.8"/>'
    return [area, *_scale(largest, top, lambda value: quantity(value, "B"))]


def _times(costs: list[NodeCost], top: float) -> list[str]:
    largest = max((cost.seconds for cost in costs), default=0) or 1e-9
    names = [cost.name for cost in costs]
    width = max(_PLOT / max(1, len(costs)) * 0.9, 0.6)
    parts = []
    for index, cost in enumerate(costs):
        if not cost.seconds:
            continue
        height = max(cost.seconds / largest * (_PANEL - 8), 0.4)
        text = f"{cost.name}: {duration(cost.seconds)}, bound by {cost.bound}"
        parts.append(
            f'<rect x="{_x(index, names):.1f}" y="{top + _PANEL - height:.1f}" width="{width:.2f}" '
            f'height="{height:.1f}" fill="{COLOURS[cost.bound]}"><title>{escape(text)}</title></rect>'
        )
    return [*parts, *_scale(largest, top, duration)]


def _scale(largest: float, top: float, text: Callable[[float], str]) -> list[str]:
    """Labels of the largest value and of its half."""
    parts = []
    for share in (0.5, 1.0):
        y = top + _PANEL - share * (_PANEL - 8)
        parts.append(f'<line x1="{_LEFT - 4}" x2="{_LEFT}" y1="{y}" y2="{y}" stroke="{_GREY}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{text(share * largest)}</text>')
    return parts


def _legend(costs: list[NodeCost], top: float) -> list[str]:
    parts = []
    x = _WIDTH - _RIGHT
    for bound in reversed([bound for bound in COLOURS if any(cost.bound == bound for cost in costs)]):
        x -= 8 * len(bound) + 24
        parts.append(f'<rect x="{x}" y="{top - 18}" width="10" height="10" fill="{COLOURS[bound]}"/>')
        parts.append(f'<text x="{x + 14}" y="{top - 9}">{bound}</text>')
    return parts


def _x(index: int, order: list[str]) -> float:
    return _LEFT + _PLOT * index / max(1, len(order))
