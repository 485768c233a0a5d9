"""Level 2 of the checks: a lowered step against the FX graph that was lowered, node by node, on the inputs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from graph_model import ops
from graph_model.ascend import standin
from graph_model.ascend.ge_graph import Node
from graph_model.ascend.interpreter import Program
from graph_model.ascend.interpreter.memory import host_view
from graph_model.ascend.lower import LoweredStep
from graph_model.backends.base import StepFunction
from graph_model.errors import UserError
from graph_model.graph import ModelGraph
from passes.check import TOLERANCE, difference

_SHARE_EXCUSED = 100  # of this many tokens one may differ by rounding


@dataclass
class Findings:
    """What the runs of one step showed. error: the largest difference, relative to a tensor's largest value; node: of
    which node. excused: tokens that differ because two candidates lie closer than rounding. problems:
    what was wrong first, in each run that had something wrong."""

    runs: int = 0
    nodes: int = 0
    tokens: int = 0
    excused: int = 0
    error: float = 0.0
    node: str = ""
    problems: list[str] = field(default_factory=list)


class CheckedStep:
    """Runs a loaded step, and at every run compares three executions on the same inputs.

    - The FX graph whose kernels were selected, by its CPU kernels: the reference.
    - The GE graph, by the interpreter: every node that both graphs have must equal the reference's, integers exactly,
      other numbers up to the dtype's tolerance; so must what is written into the caches.
    - What the run gave: on the stand-in the interpreter's results bit for bit, on a device within the tolerance.

    Tokens are choices: one may differ where the reference's logits of both are that close, a drawn one once in
    100. The first thing that differs is named in a UserError, or with `record` in the findings only.
    """

    def __init__(self, graph: ModelGraph, lowered: LoweredStep, run: StepFunction, record: bool = False) -> None:
        self.bucket = graph.bucket
        self.lowered = lowered
        self.findings = Findings()
        self._graph = graph
        self._record = record
        self._run = run
        self._program = Program(lowered.graph)
        self._bound = TOLERANCE[graph.dtype]
        self._weights = len(graph.placeholders("weight"))
        self._caches = len(graph.placeholders("cache"))
        self._host_weights: list[Tensor] = []
        self._discrete = _choices(graph)
        self._final = _final_tensors(graph, lowered.module)

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        try:
            return self._checked(arguments)
        except _Difference as difference:
            self.findings.problems.append(str(difference))
            if not self._record:
                raise UserError(f"check: {self.bucket}: {difference}") from None
        return self._outputs

    def _checked(self, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        first_input = self._weights + self._caches
        if not self._host_weights:
            self._host_weights = [_on_host(tensor) for tensor in arguments[: self._weights]]
        caches, inputs = arguments[self._weights : first_input], [x.cpu() for x in arguments[first_input:]]
        copies = [[cache.cpu() for cache in caches] for _ in range(2)]
        reference = _Tracer(self._graph.module)
        self.findings.runs += 1
        with torch.no_grad():
            outputs = self._outputs = self._run(*arguments)
            expected = reference.run(*self._host_weights, *copies[0], *inputs)
            found = self._interpret([*self._host_weights, *copies[1], *inputs], reference.values)
        slots = inputs[[node.name for node in self._graph.placeholders("input")].index("slot_mapping")].flatten()
        own = [output.cpu() for output in outputs]
        own_caches = [_on_host(cache) for cache in caches]
        self._compare_caches(copies[0], copies[1], slots, "the interpreter")
        self._compare_outputs(reference.values, expected, found, "the interpreter")
        if standin.is_standin():
            self._require_equal([*found, *copies[1]], [*own, *own_caches])
        else:
            self._compare_caches(copies[0], own_caches, slots, "the device")
            self._compare_outputs(reference.values, expected, own, "the device")
        return outputs

    def _interpret(self, arguments: list[Tensor], reference: dict[str, Any]) -> list[Tensor]:
        """The GE graph's outputs in the step's order, its nodes compared on the way."""
        compared = 0

        def observe(node: Node, values: Sequence[Tensor]) -> None:
            nonlocal compared
            for desc, value in zip(node.outputs, values, strict=True):
                name, index = _fx_output(desc.fx_name)
                origin = self._final.get((name, index))
                if origin is not None and origin in reference and origin not in self._discrete:
                    expected = reference[origin]
                    expected = expected if isinstance(expected, Tensor) else expected[index]
                    if expected.numel():
                        self._hold(expected, value.view(expected.shape), f"{node.type} {node.name} ({origin})")
                        compared += 1

        tensors = self.lowered.as_read(arguments)
        results = self._program.run([tensors[i] for i in self.lowered.input_order], observe)
        self.findings.nodes = compared
        return [results[i] for i in self.lowered.output_order]

    def _hold(self, expected: Tensor, found: Tensor, what: str) -> None:
        error = relative_difference(expected, found)
        if not error <= (self._bound if expected.is_floating_point() else 0.0):
            raise _Difference(
                f"the lowered graph differs from the graph that was lowered. The first that differs is {what}: by "
                f"{error:.1e} of its largest value, allowed are {self._bound:.0e}."
            )
        if error >= self.findings.error:
            self.findings.error, self.findings.node = error, what

    def _compare_caches(self, expected: list[Tensor], found: list[Tensor], slots: Tensor, who: str) -> None:
        for node, a, b in zip(self._graph.placeholders("cache"), expected, found, strict=True):
            rows, theirs = _tokens(a), _tokens(b)
            self._hold(rows[slots], theirs[slots], f"what {who} writes into {node.name}")
            kept = rows.clone()
            kept[slots] = theirs[slots]
            if not torch.equal(kept, theirs):
                raise _Difference(f"{who} changes {node.name} outside the slots of the step's tokens.")

    def _compare_outputs(
        self, reference: dict[str, Any], expected: Sequence[Tensor], found: Sequence[Tensor], who: str
    ) -> None:
        """Outputs that are no choices were compared as nodes, but not the device's."""
        chosen = self._graph.calls(ops.greedy_token, ops.sample_token)
        if not chosen:
            for node, a, b in zip(self._graph.outputs, expected, found, strict=True):
                self._hold(a, b, f"output {node.name} of {who}")
            return
        logits = reference[chosen[0].args[0].name].double()  # type: ignore[union-attr, index]
        margin = 2 * self._bound * logits.abs().max()
        tokens, theirs = expected[0], found[0]
        differ = tokens != theirs
        gap = (logits.gather(-1, tokens[:, None]) - logits.gather(-1, theirs[:, None])).squeeze(-1).abs()
        drawn = reference["temperature"] > 0 if "temperature" in reference else torch.zeros_like(differ)
        self.findings.tokens += len(tokens)
        self.findings.excused += int(differ.sum())
        wrong = differ & ~drawn & (gap > margin)
        if bool(wrong.any()) or self.findings.excused > max(1, self.findings.tokens // _SHARE_EXCUSED):
            raise _Difference(
                f"{who} chooses tokens {theirs.tolist()}, the graph that was lowered "
                f"{tokens.tolist()}, and not because their logits are equal up to rounding."
            )
        for node, a, b in list(zip(self._graph.outputs, expected, found, strict=True))[1:]:
            if a.is_floating_point() and not bool(((a - b).abs() <= margin)[~differ].all()):
                raise _Difference(f"{who} gives other log-probabilities ({node.name}).")

    def _require_equal(self, interpreted: list[Tensor], run: list[Tensor]) -> None:
        for index, (a, b) in enumerate(zip(interpreted, run, strict=True)):
            if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise _Difference(
                    f"result {index} of the step is not what the interpreter computes from the same graph and inputs."
                )


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """As passes.check.difference, where infinities must stand in equal places and a tensor of zeros is fine."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return difference(expected, found)
    finite = expected.isfinite()
    other, theirs = expected[~finite], found[~finite]
    if not torch.equal(other.isnan(), theirs.isnan()) or not torch.equal(other.nan_to_num(), theirs.nan_to_num()):
        return float("inf")
    expected, found = expected[finite], found[finite]
    if not expected.numel() or torch.equal(expected, found):
        return 0.0
    return difference(expected, found) if bool(expected.any()) else found.abs().max().item()


class _Difference(Exception):
    """What differs first in a run."""


class _Tracer(fx.Interpreter):
    """Executes an FX graph and keeps the value of every node that is not a view of a cache."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}
        self._caches: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder" and n.meta["kind"] == "cache":
            self._caches.add(value.untyped_storage().data_ptr())
        elif n.op == "call_function" or n.meta.get("kind") == "input":
            tensors = value if isinstance(value, (tuple, list)) else (value,)
            if all(isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self._caches for t in tensors):
                self.values[n.name] = value
        return value


def _tokens(cache: Tensor) -> Tensor:
    """A cache as [slots, ...]. Int8 caches and their scales have heads before the tokens of a block, others behind."""
    heads_first = cache.dtype == torch.int8 or cache.dim() == 3
    return (cache.transpose(1, 2) if heads_first else cache).flatten(0, 1)


def _on_host(tensor: Tensor) -> Tensor:
    return host_view(tensor) if standin.is_standin() else tensor.cpu()


def _fx_output(fx_tensor_name: str | None) -> tuple[str, int]:
    """Node and output index of torchair's tensor name ``name-target.OUTPUT.i``."""
    if fx_tensor_name is None:
        return "", 0
    name, _, rest = fx_tensor_name.partition("-")
    return name, int(rest.rpartition(".OUTPUT.")[2])


def _final_tensors(graph: ModelGraph, lowered: fx.GraphModule) -> dict[tuple[str, int], str]:
    """The step's node that a tensor of the lowered FX graph is the result of, by that graph's node and output index.

    An op may have become several nodes: its result is the last of them that has its shape and dtype.
    """
    parts: dict[str, list[fx.Node]] = {}
    for node in lowered.graph.nodes:
        origin = node.meta.get("custom", {}).get("origin")
        if origin is not None:
            parts.setdefault(origin, []).append(node)
    final: dict[tuple[str, int], str] = {}
    for node in graph.calls():
        value = node.meta["val"]
        for part in reversed(parts.get(node.name, [])):
            theirs = part.meta.get("val")
            if isinstance(value, Tensor) and isinstance(theirs, Tensor):
                if theirs.shape == value.shape and theirs.dtype == value.dtype:
                    final[part.name, 0] = node.name
                    break
            elif isinstance(value, (tuple, list)) and isinstance(theirs, (tuple, list)):
                final.update({(part.name, index): node.name for index in range(len(value))})
                break
    return final


def _choices(graph: ModelGraph) -> set[str]:
    """Nodes that a rounding error can change at will: integers and booleans made of other numbers, and what uses them.

    Numbers that were never rounded, such as positions, stay comparable.
    """
    found: set[str] = set()
    for node in graph.calls():
        values = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else (node.meta["val"],)
        floats = any(source.op == "call_function" and _is_float(source.meta["val"]) for source in node.all_input_nodes)
        chooses = floats and not all(_is_float(value) for value in values)
        if chooses or any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def _is_float(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(item, Tensor) and item.is_floating_point() for item in values)
