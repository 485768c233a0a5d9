"""Compare an FX graph with its lowered graph node by node, each computed from the interpreter's inputs of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graph_gemma.graph_model.ascend.ge_graph import Node
from graph_gemma.graph_model.graph import ModelGraph

# Raises if the found tensor differs from the expected one: expected, found, who found it.
Compare = Callable[[Tensor, Tensor, str], None]


class Recorder:
    """Observes the interpreter: keeps the GE tensors that are results of nodes of the step, by node and output index.

    lowered: the FX graph that torchair lowered, whose names the GE graph has.
    """

    def __init__(self, graph: ModelGraph, lowered: fx.GraphModule) -> None:
        self.tensors: dict[str, dict[int, tuple[Tensor, str]]] = {}
        self._results = _results_of_nodes(graph, lowered)

    def __call__(self, node: Node, values: Sequence[Tensor]) -> None:
        for desc, value in zip(node.outputs, values, strict=True):
            name, index = _fx_output(desc.fx_name)
            origin = self._results.get((name, index))
            if origin is not None:
                self.tensors.setdefault(origin, {})[index] = value, f"{node.type} {node.name} ({origin})"


class Synchronized(fx.Interpreter):
    """Executes the step's FX graph; where the interpreter has a node's result too, that is compared and taken instead.

    So errors do not add up along the graph: a difference at a node comes from it, or from nodes since the last that
    the interpreter has. Choices (indices and booleans made of rounded numbers) are replaced and not compared; quantized
    numbers are. `values` has the results of all nodes that are not views of a cache; `compared` counts tensors.
    """

    def __init__(self, graph: ModelGraph, recorded: Recorder, compare: Compare) -> None:
        super().__init__(graph.module)
        self.values: dict[str, Any] = {}
        self.compared = 0
        self._tensors = recorded.tensors
        self._compare = compare
        self._caches: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder" and n.meta["kind"] == "cache":
            self._caches.add(value.untyped_storage().data_ptr())
        elif n.op == "call_function" or n.meta.get("kind") == "input":
            tensors = value if isinstance(value, (tuple, list)) else (value,)
            if all(isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self._caches for t in tensors):
                value = self.values[n.name] = self._synchronize(n, value)
        return value

    def _synchronize(self, node: fx.Node, value: Any) -> Any:
        several = isinstance(value, (tuple, list))
        results = list(value) if several else [value]
        for index, (tensor, who) in self._tensors.get(node.name, {}).items():
            expected = results[index]
            if expected.numel():
                results[index] = tensor.view(expected.shape)
                if not _chooses(node, expected):
                    self._compare(expected, results[index], who)
                    self.compared += 1
        return tuple(results) if several else results[0]


class Tracer(fx.Interpreter):
    """Executes an FX graph and keeps the tensor of every node that is named."""

    def __init__(self, module: fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}
        self._names = names

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names:
            self.values[n.name] = value
        return value


def _chooses(node: fx.Node, result: Tensor) -> bool:
    """Whether the result is a choice, which rounding can change: an index or boolean made of computed floats."""
    if result.is_floating_point() or result.dtype == torch.int8:
        return False
    return any(source.op == "call_function" and _is_float(source.meta["val"]) for source in node.all_input_nodes)


def _is_float(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(item, Tensor) and item.is_floating_point() for item in values)


def _fx_output(fx_tensor_name: str | None) -> tuple[str, int]:
    """Node and output index of torchair's tensor name ``name-target.OUTPUT.i``."""
    if fx_tensor_name is None:
        return "", 0
    name, _, rest = fx_tensor_name.partition("-")
    return name, int(rest.rpartition(".OUTPUT.")[2])


def _results_of_nodes(graph: ModelGraph, lowered: fx.GraphModule) -> dict[tuple[str, int], str]:
    """The step's node that a tensor of the lowered FX graph is the result of, by that graph's node and output index.

    An op may have become several nodes: its result is the last of them that has its shape and dtype.
    """
    parts: dict[str, list[fx.Node]] = {}
    for node in lowered.graph.nodes:
        origin = node.meta.get("custom", {}).get("origin")
        if origin is not None:
            parts.setdefault(origin, []).append(node)
    found: dict[tuple[str, int], str] = {}
    for node in graph.calls():
        for part in reversed(parts.get(node.name, [])):
            if _alike(node.meta["val"], part.meta.get("val")):
                several = isinstance(node.meta["val"], (tuple, list))
                found.update({(part.name, i): node.name for i in range(len(node.meta["val"]) if several else 1)})
                break
    return found


def _alike(value: Any, other: Any) -> bool:
    """Equal in shape and dtype, tuples in each of theirs that is a tensor in both."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape and value.dtype == other.dtype
    if isinstance(value, (tuple, list)) and isinstance(other, (tuple, list)) and len(value) == len(other):
        return all(_alike(a, b) for a, b in zip(value, other, strict=True) if b is not None)
    return False
