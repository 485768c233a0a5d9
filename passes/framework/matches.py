"""How often a pass must match: the declarations that passes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graph_gemma.graph_model.families import Counts, LinearGroup
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Expected, Pass, PassError, describe_target


@dataclass(frozen=True)
class Counted:
    """As often as a graph's model, bucket and earlier passes call for."""

    count: Callable[[ModelGraph], int]
    none: str = ""  # why that may be 0; "": it may not

    def __call__(self, graph_pass: Pass, graph: ModelGraph) -> Expected:
        return Expected(self.count(graph), self.none)


@dataclass(frozen=True)
class EveryCandidate:
    """All candidates, among which are calls of `ops`, which a graph that the pass is for must have."""

    ops: tuple[object, ...]
    count: Callable[[ModelGraph], int] | None = None  # how many calls of `ops`; None: at least one

    def __call__(self, graph_pass: Pass, graph: ModelGraph) -> Expected:
        candidates = graph_pass.candidates(graph)
        found = sum(node.target in self.ops for node in candidates)
        least = 1 if self.count is None else self.count(graph)
        if found < least or (self.count is not None and found > least):
            names = " or ".join(map(describe_target, self.ops))
            how_many = least if self.count else "at least one"
            raise PassError(
                f"{graph_pass.name} found {found} calls of {names} in the graph of bucket {graph.bucket}, expected "
                f"{how_many}: a pass before it, or the definition, has changed"
            )
        return Expected(len(candidates))


ONCE = Counted(lambda graph: 1)


def per_model(count: Callable[[Counts], int]) -> Counted:
    """As often as the family counts it in the whole model."""
    return Counted(lambda graph: count(graph.family.counts))


def linear_calls(graph: ModelGraph, quantized: bool) -> int:
    """How many calls compute the linears that are quantized, or those that are not: one for a group that is merged."""
    named = graph.quantization.linears if quantized and graph.quantization is not None else ()
    unknown = sum(path not in graph.family.linears for path in named)  # there is no call of these, which is an error
    return unknown + sum(
        1 if graph.matches.get(merging_pass(group)) else len(group.linears)
        for group in graph.family.groups
        if is_quantized(graph, group) == quantized
    )


def merging_pass(group: LinearGroup) -> str:
    """The name of the pass that merges the linears of the group."""
    return f"merge_{group.role}"


def is_quantized(graph: ModelGraph, group: LinearGroup) -> bool:
    return graph.quantization is not None and group.paths[0] in graph.quantization.linears


def not_quantized(graph: ModelGraph) -> str:
    """Why passes for quantized linears are left out; "": they are not."""
    return "" if graph.quantization is not None and graph.quantization.linears else "no linear is quantized"


def dequantizes_weights(graph: ModelGraph) -> bool:
    """Whether int8 weights become floating-point ones in the graph, so that their linears are as those of others."""
    weights_alone = graph.scheme is not None and graph.scheme.activations is None
    return weights_alone and not graph.matches.get("fold_dequantize")
