"""Canonicalize: one spelling for each operation of the captured graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier
from graph_gemma.passes.framework.matches import EveryCandidate

aten = torch.ops.aten


@dataclass(frozen=True)
class Canonicalize(Pass):
    """One spelling for each operation; no-ops and unused weights dropped.

    ::

        _assert_tensor_metadata(x)         ->  (nothing)
        to.dtype(x, dtype of x), x * 1.0   ->  x
        unflatten(x, ...), flatten(x, ...) ->  reshape(x, shape)
        chunk(x, n, dim)[i]                ->  slice(x, dim, start, end)
    """

    name: ClassVar[str] = "canonicalize"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = EveryCandidate((aten.unflatten.int,))
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (
        aten._assert_tensor_metadata.default,
        aten.unflatten.int,
        aten.flatten.using_ints,
        aten.chunk.default,
    )

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return [node for node in graph.calls() if self._kind(node)]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        kind = self._kind(candidate)
        if kind == "nothing":
            graph.graph.erase_node(candidate)
        elif kind == "no-op":
            source = candidate.args[0]
            assert isinstance(source, fx.Node)
            candidate.replace_all_uses_with(source)
        elif kind == "reshape":
            shape = list(candidate.meta["val"].shape)
            reshaped = graph.insert(aten.reshape.default, candidate.args[0], shape, at=candidate)
            candidate.replace_all_uses_with(reshaped)
        else:
            self._slice_chunks(graph, candidate)

    def _kind(self, node: fx.Node) -> str | None:
        if node.target == aten._assert_tensor_metadata.default:
            return "nothing"
        if node.target in (aten.unflatten.int, aten.flatten.using_ints):
            return "reshape"
        if node.target == aten.chunk.default:
            return "chunk"
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node):
            if node.target == aten.to.dtype and source.meta["val"].dtype == node.meta["val"].dtype:
                return "no-op"
            if node.target == aten.mul.Tensor and node.args[1] == 1.0:
                return "no-op"
        return None

    def _slice_chunks(self, graph: ModelGraph, chunk: fx.Node) -> None:
        source, _, dim = chunk.args
        start = 0
        pieces = {user.args[1]: user for user in chunk.users}
        for index, value in enumerate(chunk.meta["val"]):
            end = start + value.shape[dim]
            if index in pieces:
                piece = pieces[index]
                piece.replace_all_uses_with(graph.insert(aten.slice.Tensor, source, dim, start, end, at=piece))
            start = end
