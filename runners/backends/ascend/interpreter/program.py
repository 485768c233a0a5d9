"""Program: load a GE graph once and execute it many times on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import PROTO_DTYPES, GeGraph, GeGraphError, Node, TensorDesc, iter_edges
from graph_gemma.runners.backends.ascend.interpreter import ops as _ops  # noqa: F401  (fills the registry)
from graph_gemma.runners.backends.ascend.interpreter.hazards import check_hazards, execution_order
from graph_gemma.runners.backends.ascend.interpreter.registry import BoundNode, Kernel, bind, where

_NONE = 0  # the slot of an absent input
_LAYOUT = "ND"  # what torchair writes of every tensor but a pooling's

# Called with a node and its outputs, which later nodes may change or release.
Observer = Callable[[Node, Sequence[Tensor]], None]


@dataclass(frozen=True)
class _Step:
    kernel: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]  # several: the kernel returns a tuple
    release: tuple[int, ...]  # slots that nothing reads afterwards
    node: Node


class Program:
    """A GE graph bound to the interpreter's functions.

    Inputs are host tensors in the order of the Data nodes' indices; those that the graph writes by reference (caches)
    are changed in place. Raises GeGraphError when the graph is loaded if a node, or a dtype or layout that it declares,
    is not known, or if two nodes use a by-reference input in no defined order; and when it runs if the inputs are not
    those that the graph declares, or an op's inputs are undefined for the real op.
    """

    def __init__(self, graph: GeGraph) -> None:
        self.graph = graph
        self.num_inputs = len(graph.inputs())
        nodes = execution_order(graph)
        for node in nodes:
            _check_declared(node)
        bound = {node.name: bind(node) for node in nodes if node.type not in _STRUCTURAL}
        check_hazards(graph, {name: item.spec.by_reference for name, item in bound.items()})
        self._slots: dict[tuple[str, int], int] = {}
        self._initial: list[Tensor | None] = [None]
        self._inputs: list[tuple[int, int]] = []  # (Data index, slot)
        for node in nodes:
            self._allocate(node)
        self._outputs = [self._slots[source] for source in iter_edges(graph.net_output())]
        self._steps = self._schedule(nodes, bound)
        self._verified = False

    def run(self, inputs: Sequence[Tensor], observe: Observer | None = None) -> list[Tensor]:
        """Execute the graph; returns NetOutput's tensors, which may share memory with inputs.

        observe: sees every node that computes, as soon as it has.
        """
        if len(inputs) != self.num_inputs:
            raise GeGraphError(f"graph {self.graph.name} has {self.num_inputs} inputs, {len(inputs)} were given")
        if not self._verified:
            self._verify_inputs(inputs)
        values: list[Any] = list(self._initial)
        for index, slot in self._inputs:
            values[slot] = inputs[index]
        for step in self._steps:
            try:
                result = step.kernel(*[values[i] for i in step.inputs])
            except GeGraphError as error:
                raise GeGraphError(f"{where(step.node)}: {error}") from None
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise GeGraphError(f"{where(step.node)}: {_describe(step, values)}: {error}") from error
            if len(step.outputs) == 1:
                values[step.outputs[0]] = result
            else:
                for slot, value in zip(step.outputs, result, strict=True):
                    values[slot] = value
            if not self._verified:
                _verify(step, values)
            if observe is not None:
                observe(step.node, [values[slot] for slot in step.outputs])
            for slot in step.release:
                values[slot] = None
        self._verified = True
        return [values[slot] for slot in self._outputs]

    def _verify_inputs(self, inputs: Sequence[Tensor]) -> None:
        for node in self.graph.inputs():
            index = node.attrs["index"]
            if wrong := _differs(inputs[index], node.outputs[0]):
                raise GeGraphError(f"{where(node)}: input {index} {wrong}")

    def _allocate(self, node: Node) -> None:
        count = 1 if node.type in ("Data", "RefData", "Const") else len(node.outputs)
        for index in range(count):
            self._slots[node.name, index] = len(self._initial)
            self._initial.append(node.attrs["value"] if node.type == "Const" else None)
        if node.type in ("Data", "RefData"):
            self._inputs.append((node.attrs["index"], self._slots[node.name, 0]))

    def _schedule(self, nodes: list[Node], bound: dict[str, BoundNode]) -> list[_Step]:
        steps = []
        for node in nodes:
            if node.name not in bound:
                continue
            kernel, slots = _flatten(bound[node.name], self._slots)
            outputs = tuple(self._slots[node.name, index] for index in range(len(node.outputs)))
            steps.append(_Step(kernel, slots, outputs, (), node))
        alive = {_NONE, *self._outputs} | {slot for slot, value in enumerate(self._initial) if value is not None}
        alive |= {slot for _, slot in self._inputs}
        scheduled = []
        for step in reversed(steps):
            touched = dict.fromkeys((*step.inputs, *step.outputs))
            release = tuple(slot for slot in touched if slot not in alive)
            alive.update(release)
            scheduled.append(_Step(step.kernel, step.inputs, step.outputs, release, step.node))
        return scheduled[::-1]


_STRUCTURAL = ("Data", "RefData", "Const", "NetOutput")


def _flatten(bound: BoundNode, slots: dict[tuple[str, int], int]) -> tuple[Kernel, tuple[int, ...]]:
    """The kernel as a function of single slots; members of dynamic inputs are gathered into lists."""
    flat: list[int] = []
    shape: list[int | None] = []  # None: one tensor; n: a list of n
    for argument in bound.arguments:
        if isinstance(argument, list):
            flat += [slots[source] for source in argument]
            shape.append(len(argument))
        else:
            flat.append(_NONE if argument is None else slots[argument])
            shape.append(None)
    if all(size is None for size in shape):
        return bound.kernel, tuple(flat)
    kernel = bound.kernel
    if len(shape) == 1:
        return (lambda *members: kernel(list(members))), tuple(flat)

    def gathered(*members: Tensor) -> Any:
        arguments: list[Any] = []
        position = 0
        for size in shape:
            arguments.append(members[position] if size is None else list(members[position : position + size]))
            position += 1 if size is None else size
        return kernel(*arguments)

    return gathered, tuple(flat)


def _check_declared(node: Node) -> None:
    for desc in node.outputs:
        if desc.unknown_dtype is not None:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in PROTO_DTYPES.values())
            raise GeGraphError(
                f"{where(node)}: output {desc.name} is declared {desc.unknown_dtype}; the interpreter knows {known}"
            )
        if desc.layout != _LAYOUT:
            raise GeGraphError(
                f"{where(node)}: output {desc.name} has the layout {desc.layout!r}; the interpreter knows {_LAYOUT!r}"
            )


def _verify(step: _Step, values: list[Any]) -> None:
    """On the first run: what was computed has the dtype and shape that the graph declares."""
    for slot, desc in zip(step.outputs, step.node.outputs, strict=True):
        # torchair fills in the shapes of what FX nodes return.
        if wrong := _differs(values[slot], desc if desc.fx_name is not None else replace(desc, shape=None)):
            raise GeGraphError(f"{where(step.node)}: output {desc.name} {wrong}")


def _differs(value: Tensor, declared: TensorDesc) -> str:
    """What is wrong with a tensor, "" if nothing is."""
    if declared.dtype is not None and value.dtype != declared.dtype:
        return f"is {value.dtype}, declared {declared.dtype}"
    shape = declared.shape
    if shape is None or shape == (-2,):
        return ""
    if len(shape) != value.dim() or any(size not in (-1, real) for size, real in zip(shape, value.shape, strict=True)):
        return f"has shape {tuple(value.shape)}, declared {shape}"
    return ""


def _describe(step: _Step, values: list[Any]) -> str:
    parts = []
    for slot in step.inputs:
        value = values[slot]
        parts.append("absent" if value is None else f"{value.dtype}{list(value.shape)}")
    return "inputs " + ", ".join(parts)
