"""Merge projections of one input into one linear."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model.families import LinearGroup, Role
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import Concat
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier, expression
from graph_gemma.passes.framework.matches import Counted

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeProjections(Pass):
    """Original: linear(x, w1), linear(x, w2), ... After: split(linear(x, cat(w1, w2, ...)))."""

    tier: ClassVar[Tier] = Tier.TOLERANT
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    role: ClassVar[Role]

    def groups(self, graph: ModelGraph) -> dict[str, LinearGroup]:
        """The groups of several linears that the pass merges, by the path of the first one."""
        groups = graph.family.groups
        return {group.paths[0]: group for group in groups if group.role == self.role and group.merged}

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        """The first projection of each group."""
        groups = self.groups(graph)
        return [n for n in graph.calls(aten.linear.default) if n.meta["layer"] in groups]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        group = self.groups(graph)[candidate.meta["layer"]]
        linears = _linears(candidate, group)
        weights = [_merge(graph, linears, 1, f"{group.merged}.weight")]
        if len(candidate.args) > 2:
            weights.append(_merge(graph, linears, 2, f"{group.merged}.bias"))
        merged = graph.insert(aten.linear.default, candidate.args[0], *weights, at=candidate)
        sizes = [n.meta["val"].shape[-1] for n in linears]
        split = graph.insert(aten.split_with_sizes.default, merged, sizes, -1, at=candidate)
        merged.meta["layer"] = split.meta["layer"] = group.merged
        pieces = [graph.insert(operator.getitem, split, index, at=candidate) for index in range(len(linears))]
        for piece, linear in zip(pieces, linears, strict=True):
            piece.meta["layer"] = group.merged
            linear.replace_all_uses_with(piece)


def _linears(candidate: fx.Node, group: LinearGroup) -> list[fx.Node]:
    """The calls of the group's linears, in its order. Raises NearMiss."""
    x = candidate.args[0]
    assert isinstance(x, fx.Node)
    linears = [user for user in x.users if user.target == aten.linear.default and user.args[0] is x]
    paths = [linear.meta["layer"] for linear in linears]
    if sorted(paths) != sorted(group.paths):
        raise NearMiss(candidate, f"its input feeds {', '.join(paths)}, expected {', '.join(group.paths)}")
    if len({len(linear.args) for linear in linears}) != 1:
        raise NearMiss(candidate, "some of the projections have a bias and some have none")
    return sorted(linears, key=lambda linear: group.paths.index(linear.meta["layer"]))


def _merge(graph: ModelGraph, linears: list[fx.Node], index: int, name: str) -> fx.Node:
    """A weight that joins argument `index` of the linears."""
    parts = tuple(expression(linear, index) for linear in linears)
    return graph.add_weight(f"p_{name}".replace(".", "_"), Concat(parts))


@dataclass(frozen=True)
class MergeQKV(MergeProjections):
    """One linear for query, key and value."""

    name: ClassVar[str] = "merge_qkv"
    role: ClassVar[Role] = "qkv"
    matches: ClassVar[Matches] = Counted(lambda graph: _groups(graph, "qkv"))


@dataclass(frozen=True)
class MergeGateUp(MergeProjections):
    """One linear for gate and up."""

    name: ClassVar[str] = "merge_gate_up"
    role: ClassVar[Role] = "gate_up"
    matches: ClassVar[Matches] = Counted(lambda graph: _groups(graph, "gate_up"))


def _groups(graph: ModelGraph, role: Role) -> int:
    return sum(group.role == role and bool(group.merged) for group in graph.family.groups)
