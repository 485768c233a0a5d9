"""The integers that a graph's quantized products read: what folds may change of them, and how they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graph_gemma.graph_model.graph import ModelGraph

aten = torch.ops.aten


@dataclass(frozen=True)
class IntegerBound:
    """Of the int8 values that products read, at most `share` may differ from those before, by at most `max_lsb`."""

    max_lsb: int
    share: float


SAME = IntegerBound(0, 0.0)


@dataclass(frozen=True)
class IntegerDifference:
    """max_lsb: the largest difference of two int8 values. share: of the values that differ. problem: "" or what is
    wrong besides."""

    max_lsb: int = 0
    share: float = 0.0
    problem: str = ""

    def within(self, bound: IntegerBound) -> bool:
        return not self.problem and self.max_lsb <= bound.max_lsb and self.share <= bound.share


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the int8 activations that its products read, in the graph's order, in `values`.

    earlier: of the graph before a pass. Its results are taken for what the pass left alone, and its activations are
    what the products get. So each activation is judged by what the pass made of the calls just before it: in a deep
    graph a few integers that differ by one become many that differ by more.
    """

    def __init__(self, graph: ModelGraph, earlier: Recorder | None = None) -> None:
        super().__init__(graph.module)
        self._wanted = _activations(graph)
        self._earlier = earlier
        self._results: dict[tuple[str, str], Any] = {}
        self.values: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function":
            return value
        key = n.name, str(n.target)
        self._results[key] = value
        earlier = self._earlier
        if n in self._wanted:
            index = len(self.values)
            self.values.append(value.flatten())
            if earlier and index < len(earlier.values) and earlier.values[index].numel() == value.numel():
                return earlier.values[index].view(value.shape)
        return value if earlier is None else earlier._results.get(key, value)


def compare_integers(before: Sequence[Tensor], after: Sequence[Tensor]) -> IntegerDifference:
    """What the activations of two graphs differ in."""
    sizes = [[value.numel() for value in values] for values in (before, after)]
    if sizes[0] != sizes[1]:
        return IntegerDifference(problem=f"the graphs read {len(before)} and {len(after)} activations, not the same")
    if not before:
        return IntegerDifference()
    steps = (torch.cat(list(before)).int() - torch.cat(list(after)).int()).abs()
    return IntegerDifference(int(steps.max()), (steps > 0).float().mean().item())


def _activations(graph: ModelGraph) -> dict[fx.Node, None]:
    """int8 results of calls that calls with other results read; views are looked through."""
    found: dict[fx.Node, None] = {}
    for node in graph.calls():
        if _is_int8(node):
            continue
        for source in node.all_input_nodes:
            root = source
            while root.target == aten.reshape.default and root.all_input_nodes:
                root = root.all_input_nodes[0]
            if root.op == "call_function" and _is_int8(root):
                found[root] = None
    return found


def _is_int8(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.int8
