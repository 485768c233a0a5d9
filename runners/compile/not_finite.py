"""Find the layer where NaN or infinity begins: a step's graph is run again, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graph_gemma.graph_model.graph import ModelGraph


def first_not_finite(graph: ModelGraph, arguments: Sequence[Tensor], rows: Sequence[int]) -> list[str]:
    """For each of these rows of a step that has just run, a sentence on where its first NaN or infinity is.

    graph: the step's. arguments: those that it ran on, caches included; the run writes into host caches what the step
    wrote. It computes with the ops' reference kernels on the host, so that a backend whose kernels round otherwise may
    overflow elsewhere. All ranks that share the model call this, as their graphs exchange numbers.
    """
    search = _Search(graph, rows)
    with torch.no_grad():
        search.run(*(tensor.cpu() for tensor in arguments))
    return [search.found.get(row, _NOWHERE) for row in rows]


_NOWHERE = "Run again op by op on the host, the step gives finite numbers: they become infinite in a fused kernel."


class _Search(fx.Interpreter):
    """Runs a graph and keeps, for each row, where the first value is that is not finite in that row."""

    def __init__(self, graph: ModelGraph, rows: Sequence[int]) -> None:
        super().__init__(graph.module)
        self.found: dict[int, str] = {}
        self._rows = rows
        self._norms = graph.family.norms
        self._attention = graph.family.attention_modules
        self._batch, self._tokens = graph.bucket.batch, graph.bucket.batch * graph.bucket.chunk

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        results = value if isinstance(value, tuple | list) else (value,)
        if n.op == "call_function":
            for row in self._rows:
                broken = [x for x in results if isinstance(x, Tensor) and self._is_broken(x, row, n)]
                if broken and row not in self.found:
                    self.found[row] = self._describe(n, summed=any(x is not results[0] for x in broken))
        return value

    def _is_broken(self, value: Tensor, row: int, node: fx.Node) -> bool:
        if not value.is_floating_point():
            return False
        part = self._part(value, row)
        # Attention's masked scores are minus infinity, and meant to be.
        masked = node.meta.get("layer") in self._attention
        return not bool((part < torch.inf if masked else part.isfinite()).all())

    def _describe(self, node: fx.Node, summed: bool) -> str:
        """summed: whether another result than the first is not finite, which of a norm's kernel is the residual sum."""
        layer = node.meta.get("layer", "")
        norm = self._norms.get(layer)
        where = layer or "the choice of the token"
        if summed and norm is not None and norm.reads == "stream":
            where = f"the residual sum that {layer} reads"
        return f"They begin in {where} (node {node.name}, {node.target})."

    def _part(self, value: Tensor, row: int) -> Tensor:
        """The row's part of a value of one row per sequence or per token; all of any other."""
        size = value.shape[0] if value.dim() else 0
        if size == self._batch:
            return value[row]
        chunk = self._tokens // self._batch
        return value[row * chunk : (row + 1) * chunk] if size == self._tokens else value
