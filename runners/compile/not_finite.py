"""Find the layer where NaN or infinity begins: a step's graph is run again, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graph_model.graph import ModelGraph


def first_not_finite(graph: ModelGraph, arguments: Sequence[Tensor], rows: Sequence[int]) -> list[str]:
    """For each of these rows of a step that has just run, a sentence on where its first NaN or infinity is.

    graph: the step's. arguments: those that it ran on, caches included; the run writes into host caches what the step
    wrote. It computes with the ops' reference kernels on the host, so that a backend whose kernels round otherwise may
    overflow elsewhere. All ranks that share the model call this, as their graphs exchange numbers.
    """
    search = _Search(graph, rows)
    with torch.no_grad():
        search.run(*(tensor.cpu() for tensor in arguments))
    return [_describe(search.found.get(row)) for row in rows]


class _Search(fx.Interpreter):
    """Runs a graph and keeps, for each row, the first node whose value in that row is not finite."""

    def __init__(self, graph: ModelGraph, rows: Sequence[int]) -> None:
        super().__init__(graph.module)
        self.found: dict[int, fx.Node] = {}
        self._rows = rows
        self._attention = graph.family.attention_modules
        self._batch, self._tokens = graph.bucket.batch, graph.bucket.batch * graph.bucket.chunk

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            missing = [row for row in self._rows if row not in self.found]
            # Attention's masked scores are minus infinity, and meant to be.
            masked = n.meta.get("layer") in self._attention
            self.found.update({row: n for row in missing if _is_broken(self._part(value, row), masked)})
        return value

    def _part(self, value: Tensor, row: int) -> Tensor:
        """The row's part of a value of one row per sequence or per token; all of any other."""
        size = value.shape[0] if value.dim() else 0
        if size == self._batch:
            return value[row]
        chunk = self._tokens // self._batch
        return value[row * chunk : (row + 1) * chunk] if size == self._tokens else value


def _is_broken(value: Tensor, masked: bool) -> bool:
    return not bool((value < torch.inf if masked else value.isfinite()).all())


def _describe(node: fx.Node | None) -> str:
    if node is None:
        return "Run again op by op on the host, the step gives finite numbers: they become infinite in a fused kernel."
    return f"They begin in {node.meta.get('layer') or 'the choice of the token'} (node {node.name}, {node.target})."
