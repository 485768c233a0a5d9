"""Merge projections of one input into one linear."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model.graph import ModelGraph
from graph_model.weights import Concat
from passes.framework.contract import NearMiss, Pass, Tier

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeProjections(Pass):
    """Original: linear(x, w1), linear(x, w2), ... After: split(linear(x, cat(w1, w2, ...)))."""

    tier: ClassVar[Tier] = Tier.TOLERANT
    projections: ClassVar[tuple[str, ...]]
    merged: ClassVar[str]

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        """The first projection of each group."""
        return [n for n in graph.calls(aten.linear.default) if n.meta["layer"].endswith(f".{self.projections[0]}")]

    def expected_matches(self, graph: ModelGraph) -> int:
        return graph.config.num_hidden_layers

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        linears = self._group(candidate)
        merged_name = candidate.meta["layer"].rsplit(".", 1)[0] + "." + self.merged
        weights = [_merge(graph, linears, 1, f"{merged_name}.weight")]
        if len(candidate.args) > 2:
            weights.append(_merge(graph, linears, 2, f"{merged_name}.bias"))
        merged = graph.insert(aten.linear.default, candidate.args[0], *weights, at=candidate)
        sizes = [n.meta["val"].shape[-1] for n in linears]
        split = graph.insert(aten.split_with_sizes.default, merged, sizes, -1, at=candidate)
        merged.meta["layer"] = split.meta["layer"] = merged_name
        pieces = [graph.insert(operator.getitem, split, index, at=candidate) for index in range(len(linears))]
        for piece, linear in zip(pieces, linears, strict=True):
            piece.meta["layer"] = merged_name
            linear.replace_all_uses_with(piece)

    def _group(self, candidate: fx.Node) -> list[fx.Node]:
        x = candidate.args[0]
        assert isinstance(x, fx.Node)
        linears = [user for user in x.users if user.target == aten.linear.default and user.args[0] is x]
        names = tuple(_module_name(linear) for linear in linears)
        if sorted(names) != sorted(self.projections):
            raise NearMiss(candidate, f"its input feeds {names}, expected {self.projections}")
        if len({len(linear.args) for linear in linears}) != 1:
            raise NearMiss(candidate, "some of the projections have a bias and some have none")
        return sorted(linears, key=lambda linear: self.projections.index(_module_name(linear)))


def _module_name(linear: fx.Node) -> str:
    return linear.meta["layer"].rsplit(".", 1)[-1]


def _merge(graph: ModelGraph, linears: list[fx.Node], index: int, name: str) -> fx.Node:
    """A weight that joins argument `index` of the linears."""
    sources = [linear.args[index] for linear in linears]
    expressions = []
    for linear, source in zip(linears, sources, strict=True):
        if not isinstance(source, fx.Node) or "expression" not in source.meta:
            raise NearMiss(linear, f"argument {index} is not a weight")
        expressions.append(source.meta["expression"])
    return graph.add_weight(f"p_{name}".replace(".", "_"), Concat(tuple(expressions)))


@dataclass(frozen=True)
class MergeQKV(MergeProjections):
    """One linear for query, key and value."""

    name: ClassVar[str] = "merge_qkv"
    projections: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")
    merged: ClassVar[str] = "qkv_proj"


@dataclass(frozen=True)
class MergeGateUp(MergeProjections):
    """One linear for the gate and the up projection."""

    name: ClassVar[str] = "merge_gate_up"
    projections: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj")
    merged: ClassVar[str] = "gate_up_proj"
