"""Check a lowered step against the FX graph that was lowered, node by node, on the inputs of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.numerics import FEW_TIES, OP_TOLERANCE, TOLERANCE, most_ties, relative_difference
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.backends.ascend.interpreter.memory import host_view
from graph_gemma.runners.backends.ascend.lockstep import Recorder, Synchronized, Tracer
from graph_gemma.runners.backends.ascend.lower import LoweredStep
from graph_gemma.runners.backends.base import StepFunction

# A device's results may lie this many times as far from the FX graph's as the interpreter's do, which round otherwise.
_DRIFT = 4


@dataclass
class Findings:
    """What the runs of one step showed. Differences are relative to a tensor's largest value."""

    runs: int = 0
    nodes: int = 0  # compared in a run
    tokens: int = 0  # compared in all runs
    ties: int = 0  # tokens that differ where two candidates are equal up to rounding
    error: float = 0.0  # the largest difference at a node
    node: str = ""  # at which
    drift: float = 0.0  # the largest difference of the logits after a whole step
    problems: list[str] = field(default_factory=list)  # for each run with a fault, the first


class CheckedStep:
    """Runs a loaded step, and at every run compares executions on the same inputs.

    - Node by node: the interpreter executes the GE graph, and the FX graph whose kernels were selected computes each of
      its nodes, by CPU kernels, from what the interpreter has for the node's inputs. Every node that both graphs have
      must agree up to the rounding of one op, integers exactly; so must what is written into the caches.
    - Whole: the FX graph alone. Rounding adds up along a graph, so tokens are compared and logits are not: a greedy
      token may differ where the FX graph's logits of both are equal up to rounding, a drawn one once in 100 given the
      interpreter's logits.
    - What the run gave: on the stand-in the interpreter's results bit for bit; on a device caches and outputs as near
      to the FX graph's as the interpreter's are, up to `TOLERANCE` and `_DRIFT`.

    The first thing that differs is named in a UserError, or with `record` in the findings only.
    """

    def __init__(self, graph: ModelGraph, lowered: LoweredStep, run: StepFunction, record: bool = False) -> None:
        self.bucket = graph.bucket
        self.lowered = lowered
        self.findings = Findings()
        self._graph = graph
        self._record = record
        self._run_step = run
        self._program = Program(lowered.graph)
        self._bound = TOLERANCE[graph.dtype]
        self._weights = len(graph.placeholders("weight"))
        self._caches = len(graph.placeholders("cache"))
        self._host_weights: list[Tensor] = []
        choices = graph.calls(ops.greedy_token, ops.sample_token)
        self._logits: str = choices[0].all_input_nodes[0].name if choices else ""

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        try:
            return self._run_and_compare(arguments)
        except _Difference as difference:
            self.findings.problems.append(str(difference))
            if not self._record:
                raise UserError(f"check: {self.bucket}: {difference}") from None
        return self._outputs

    def _run_and_compare(self, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        first_input = self._weights + self._caches
        if not self._host_weights:
            self._host_weights = [_on_host(tensor) for tensor in arguments[: self._weights]]
        caches, inputs = arguments[self._weights : first_input], [x.cpu() for x in arguments[first_input:]]
        given, local, whole = ([cache.cpu() for cache in caches] for _ in range(3))
        self.findings.runs += 1
        with torch.no_grad():
            outputs = self._outputs = self._run_step(*arguments)
            recorded = Recorder(self._graph, self.lowered.module)
            results = self._program.run(self.lowered.as_read([*self._host_weights, *given, *inputs]), recorded)
            found = [results[i] for i in self.lowered.output_order]
            reference = Tracer(self._graph.module, [self._logits])
            expected = reference.run(*self._host_weights, *whole, *inputs)
            if all(bool((tokens == ops.NOT_FINITE).any()) for tokens in (expected[0], found[0])):
                return outputs  # the model's own numbers, which the engine refuses
            nodes = Synchronized(self._graph, recorded, self._check_rounding)
            by_node = nodes.run(*self._host_weights, *local, *inputs)
        self.findings.nodes = nodes.compared
        own, own_caches = [output.cpu() for output in outputs], [_on_host(cache) for cache in caches]
        by_name = dict(zip((node.name for node in self._graph.placeholders("input")), inputs, strict=True))
        slots = [by_name[self._graph.slots_of(cache)].flatten() for cache in self._graph.placeholders("cache")]
        drawn = nodes.values["temperature"] > 0 if "temperature" in nodes.values else None
        self._compare_caches(local, given, slots, "the interpreter")
        self._compare_results(by_node, found, drawn, nodes.values)
        self._compare_tokens(reference.values, expected, found, drawn, "the interpreter")
        if self._logits:
            drift = relative_difference(reference.values[self._logits], nodes.values[self._logits])
            self.findings.drift = max(self.findings.drift, drift)
        if standin.is_standin():
            self._require_equal([*found, *given], [*own, *own_caches])
        else:
            self._compare_caches(whole, own_caches, slots, "the device", near=given)
            self._compare_tokens(reference.values, expected, own, drawn, "the device")
            same: Any = slice(None)
            if self._logits:
                same = (expected[0] == own[0]) & (expected[0] == found[0])
            for node, a, b, theirs in zip(self._graph.outputs, expected, found, own, strict=True):
                if a.is_floating_point():
                    self._check_drift(a[same], b[same], theirs[same], f"output {node.name} of the device")
        return outputs

    def _check_rounding(self, expected: Tensor, found: Tensor, what: str) -> None:
        """Raise if `found` differs by more than the rounding of one op."""
        error, allowed = relative_difference(expected, found), OP_TOLERANCE.get(expected.dtype, 0.0)
        if not error <= allowed:
            raise _Difference(
                f"the lowered graph differs from the graph that was lowered. The first that differs is {what}: by "
                f"{error:.1e} of its largest value, allowed are {allowed:.0e}."
            )
        if error >= self.findings.error:
            self.findings.error, self.findings.node = error, what

    def _compare_caches(
        self,
        expected: list[Tensor],
        found: list[Tensor],
        slots: list[Tensor],
        who: str,
        near: list[Tensor] | None = None,
    ) -> None:
        """Raise if what is written at the step's slots differs, or else is written.

        slots: of each cache. near: as of `_check_drift`.
        """
        for index, node in enumerate(self._graph.placeholders("cache")):
            rows, theirs, written = _by_token(expected[index]), _by_token(found[index]), slots[index]
            what = f"what {who} writes into {node.name}"
            if near is None:
                self._check_rounding(rows[written], theirs[written], what)
            else:
                self._check_drift(rows[written], _by_token(near[index])[written], theirs[written], what)
            kept = rows.clone()
            kept[written] = theirs[written]
            if not torch.equal(kept, theirs):
                raise _Difference(f"{who} changes {node.name} outside the slots of the step's tokens.")

    def _compare_results(
        self, expected: Sequence[Tensor], found: Sequence[Tensor], drawn: Tensor | None, values: Mapping[str, Tensor]
    ) -> None:
        """The interpreter's outputs against those that the FX graph computes from its values, choices included.

        Log-probabilities of a drawn token that differs are not compared. Of equal candidates either may be listed.
        """
        same: Any = slice(None)
        for index, (node, a, b) in enumerate(zip(self._graph.outputs, expected, found, strict=True)):
            if index == 0 and drawn is not None:
                same = (a == b) | ~drawn
                self._count(int((~same).sum()), 0)
            elif index > 0 and not a.is_floating_point() and self._logits:
                a, b = (values[self._logits].gather(-1, ids.clamp(min=0)) for ids in (a, b))
            self._check_rounding(a[same], b[same], f"output {node.name} of the interpreter")

    def _compare_tokens(
        self,
        reference: Mapping[str, Tensor],
        expected: Sequence[Tensor],
        found: Sequence[Tensor],
        drawn: Tensor | None,
        who: str,
    ) -> None:
        """Greedy tokens against those of the FX graph alone."""
        if not self._logits:
            return
        logits, tokens, theirs = reference[self._logits].double(), expected[0], found[0]
        margin = 2 * self._bound * logits.abs().max()
        best, other = (logits.gather(-1, ids.clamp(min=0)[..., None]).squeeze(-1) for ids in (tokens, theirs))
        gap = (best - other).abs()
        differ = tokens != theirs if drawn is None else (tokens != theirs) & ~drawn
        self._count(int(differ.sum()), tokens.numel())
        if bool((differ & ~(gap <= margin)).any()):
            raise _Difference(
                f"{who} chooses tokens {theirs.tolist()}, the graph that was lowered "
                f"{tokens.tolist()}, and not because their logits are equal up to rounding."
            )

    def _count(self, ties: int, tokens: int) -> None:
        found = self.findings
        found.ties += ties
        found.tokens += tokens
        if found.ties > most_ties(found.tokens):
            raise _Difference(
                f"{found.ties} of {found.tokens} tokens differ within rounding; at most 1 %, or {FEW_TIES}, may."
            )

    def _check_drift(self, expected: Tensor, near: Tensor, found: Tensor, what: str) -> None:
        """Raise if `found` differs by more than rounding makes whole steps differ, of which `near` is an example."""
        expected, near, found = (x if x.is_floating_point() else x.float() for x in (expected, near, found))
        allowed = self._bound + _DRIFT * relative_difference(expected, near)
        error = relative_difference(expected, found)
        if not error <= allowed:
            raise _Difference(f"{what} differs by {error:.1e} of the largest value, allowed are {allowed:.1e}.")

    def _require_equal(self, interpreted: list[Tensor], run: list[Tensor]) -> None:
        for index, (a, b) in enumerate(zip(interpreted, run, strict=True)):
            if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise _Difference(
                    f"result {index} of the step is not what the interpreter computes from the same graph and inputs."
                )


class _Difference(Exception):
    """What differs first in a run."""


def _by_token(cache: Tensor) -> Tensor:
    """A cache as [slots, ...]. Int8 caches and their scales have heads before the tokens of a block, others after."""
    heads_first = cache.dtype == torch.int8 or cache.dim() == 3
    return (cache.transpose(1, 2) if heads_first else cache).flatten(0, 1)


def _on_host(tensor: Tensor) -> Tensor:
    return host_view(tensor) if standin.is_standin() else tensor.cpu()
