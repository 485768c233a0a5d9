"""The pass manager: runs the configured passes and enforces the contract after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.attributes import check_attributes
from graph_gemma.passes.framework.contract import Expected, Outcome, Pass, PassError, describe_target, out_of_order
from graph_gemma.passes.framework.dump import dump

aten = torch.ops.aten

# What may stand in a graph from the first pass on. An op outside this list has no meaning that a backend agreed to.
VOCABULARY = frozenset(
    {
        aten.__and__.Tensor,
        aten.add.Tensor,
        aten.arange.default,
        aten.arange.start_step,
        aten.bitwise_not.default,
        aten.cat.default,
        aten.cos.default,
        aten.div.Tensor,
        aten.embedding.default,
        aten.gelu.default,
        aten.gt.Tensor,
        aten.le.Tensor,
        aten.linear.default,
        aten.masked_fill.Scalar,
        aten.matmul.default,
        aten.mean.dim,
        aten.mul.Tensor,
        aten.neg.default,
        aten.pow.Scalar,
        aten.pow.Tensor_Scalar,
        aten.reciprocal.default,
        aten.repeat_interleave.self_int,
        aten.reshape.default,
        aten.rsqrt.default,
        aten.scaled_dot_product_attention.default,
        aten.select.int,
        aten.sin.default,
        aten.slice.Tensor,
        aten.softmax.int,
        aten.split_with_sizes.default,
        aten.sub.Tensor,
        aten.tanh.default,
        aten.to.dtype,
        aten.transpose.int,
        aten.unsqueeze.default,
    }
)

Observer = Callable[[Pass, ModelGraph, ModelGraph], None]


def run_passes(
    graph: ModelGraph,
    passes: Sequence[Pass],
    dump_dir: Path | None = None,
    observe: Observer | None = None,
    dump_note: str = "",
) -> None:
    """Rewrite `graph` in place, checking each pass's contract.

    dump_dir: where a text of the graph is written before the first pass and after each, headed by `dump_note` too.
    observe: called with the pass, the graph before it and the graph after it.
    A pass that finds nothing because one that it needs is off is noted in `graph.skipped` with that reason.
    Raises PassError when a pass comes too early, matches less or more than the model calls for or finds nothing without
    a reason, leaves an op that it should have removed, introduces an op outside the vocabulary, or loses an attribute
    of the model.
    """
    if wrong := out_of_order(passes):
        raise PassError(f"{wrong[0].name} must come after {wrong[1].name}, and comes before it")
    _write(dump_dir, 0, "capture", graph, "captured", dump_note)
    ran: list[Pass] = []
    for graph_pass in passes:
        if graph_pass.idle(graph):  # which passes before it decide, such as the one that shares the model
            continue
        ran.append(graph_pass)
        before = graph.copy() if observe else None
        expected = _expected(graph_pass, graph)
        outcome = graph_pass.apply(graph)
        introduced = frozenset(op for earlier in ran for op in earlier.introduces)
        _check_contract(graph, graph_pass, expected, outcome, introduced)
        graph.matches[graph_pass.name] = outcome.matches
        title = f"after {graph_pass.name} ({graph_pass.tier.value}, {outcome.matches} matches)"
        if not outcome.matches:
            graph.skipped[graph_pass.name] = expected.reason
            title = f"skipped: {graph_pass.name} ({graph_pass.tier.value}), {expected.reason}"
        _write(dump_dir, len(ran), graph_pass.name, graph, title, dump_note)
        if observe and before:
            observe(graph_pass, before, graph)


def _expected(graph_pass: Pass, graph: ModelGraph) -> Expected:
    """How often the pass must match: what it declares, or nothing where a pass that it needs is off."""
    absent = [name for name in graph_pass.needs if not graph.matches.get(name)]
    if absent:
        return Expected(0, " and ".join(f"{name} is off" for name in absent))
    return graph_pass.matches(graph_pass, graph)


def _check_contract(
    graph: ModelGraph, graph_pass: Pass, expected: Expected, outcome: Outcome, introduced: frozenset[str]
) -> None:
    name = graph_pass.name
    if outcome.matches != expected.count:
        nearest = "; ".join(outcome.near_misses[:3]) or "there was no candidate"
        because = f", as {expected.reason}" if expected.reason and not expected.count else ""
        raise PassError(
            f"{name} matched {outcome.matches} times, expected {expected.count} for bucket {graph.bucket}{because}. "
            f"Nearest misses: {nearest}"
        )
    if not expected.count and not expected.reason:
        raise PassError(f"{name} found nothing to do for bucket {graph.bucket}, and nothing that it needs is off")
    left = graph.calls(*graph_pass.removes) if graph_pass.removes else []
    if left:
        raise PassError(f"{name} left {left[0].name}, a call of {describe_target(left[0].target)}, in the graph")
    for node in graph.calls():
        known = node.target in VOCABULARY or ops.is_canonical(node.target)
        known = known or describe_target(node.target) in introduced
        if not known and getattr(node.target, "__name__", "") != "getitem":
            raise PassError(f"after {name}: {node.name} calls {describe_target(node.target)}, which is no op of a step")
    check_attributes(graph, name)


def _write(dump_dir: Path | None, index: int, name: str, graph: ModelGraph, title: str, note: str) -> None:
    if dump_dir is not None:
        folder = dump_dir / str(graph.bucket)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02}_{name}.txt").write_text(dump(graph, title, note), encoding="utf-8")
