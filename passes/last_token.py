"""Keep only the tokens whose logits are asked for behind the last attention: each row's last, or scored ones."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier, operand
from graph_gemma.passes.framework.matches import ONCE

aten = torch.ops.aten


# Ops that work token by token, with how many of their first arguments have a token dimension.
TOKEN_WISE = {
    aten.add.Tensor: 2,
    aten.linear.default: 1,
    aten.slice.Tensor: 1,  # of logits, whose last dimension a rank may have to cut
    aten.split_with_sizes.default: 1,
    aten.to.dtype: 1,
    operator.getitem: 1,
    ops.all_gather: 1,
    ops.all_reduce: 1,
    ops.float32_linear: 1,
    ops.rms_norm: 1,
    ops.softcap: 1,
    ops.gelu_and_mul: 2,
}


@dataclass(frozen=True)
class LastToken(Pass):
    """After the last attention only each row's last token is computed.

    Original: linear(rms_norm(a + b), head). After: linear(rms_norm(last(a) + last(b)), head) and so on backwards as
    long as ops work token by token, where last is gemma.last_token(_, query_lens), or select(_, 1, 0) in decode.
    A bucket that scores takes gemma.take_tokens(_, score_positions), a new input, so the head never sees more
    tokens than are scored.
    """

    name: ClassVar[str] = "last_token"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = ONCE
    after: ClassVar[tuple[str, ...]] = ("rms_norm", "merge_qkv", "merge_gate_up", "gelu_and_mul", "paged_attention")
    required: ClassVar[bool] = True

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return list(graph.outputs)

    def prepare(self, graph: ModelGraph) -> None:
        if graph.bucket.scored:
            with graph.fake_mode:
                positions = torch.empty((graph.bucket.batch, graph.bucket.scored), dtype=torch.int64)
            graph.add_placeholder("score_positions", "input", positions)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        if candidate.target not in (aten.linear.default, ops.all_gather, ops.softcap, aten.slice.Tensor):
            raise NearMiss(candidate, "the graph does not end in the head's linear")
        barriers = _attention_and_before(graph)
        graph.set_outputs(self._take(graph, candidate, barriers, {}))

    def _take(self, graph: ModelGraph, node: fx.Node, barriers: set[fx.Node], taken: dict[fx.Node, fx.Node]) -> fx.Node:
        """The node that computes the last tokens of `node`'s value; `taken` remembers those that exist."""
        if node.meta.get("kind") == "weight":
            return node
        if node not in taken:
            arity = 0 if node in barriers else TOKEN_WISE.get(node.target, 0)
            if arity and isinstance(node.args[arity - 1], fx.Node):
                inputs = [self._take(graph, operand(node, index), barriers, taken) for index in range(arity)]
                last = graph.insert(node.target, *inputs, *node.args[arity:], at=node.next)
            elif graph.bucket.phase == "decode":
                last = graph.insert(aten.select.int, node, 1, 0, at=node.next)
            elif graph.bucket.scored:
                last = graph.insert(ops.take_tokens, node, _input(graph, "score_positions"), at=node.next)
            else:
                last = graph.insert(ops.last_token, node, _input(graph, "query_lens"), at=node.next)
            last.meta["layer"] = node.meta["layer"]
            taken[node] = last
        return taken[node]

    def project(self, output: Any, graph: ModelGraph, inputs: dict[str, torch.Tensor]) -> Any:
        if graph.bucket.scored:
            return ops.take_tokens(output, inputs["score_positions"])
        lens = inputs.get("query_lens")
        return output[:, 0] if lens is None else ops.last_token(output, lens)


def _input(graph: ModelGraph, name: str) -> fx.Node:
    return next(node for node in graph.placeholders("input") if node.name == name)


def _attention_and_before(graph: ModelGraph) -> set[fx.Node]:
    """The nodes that compute what some attention reads, and attention: all their tokens are needed."""
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.target == ops.paged_attention or any(user in found for user in node.users):
            found.add(node)
    return found
