"""Share the model among the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.tensor_parallel import Shard, check_world_size
from graph_gemma.graph_model.weights import Constant
from graph_gemma.passes.framework.contract import Matches, NearMiss, Outcome, Pass, Tier, expression, operand
from graph_gemma.passes.framework.matches import per_model

aten = torch.ops.aten


@dataclass(frozen=True)
class ShardTensorParallel(Pass):
    """Each rank gets its part of the weights; collectives join the parts. Shoeybi et al., arXiv:1909.08053.

    ::

        linear(x, w, b)    q, k, v, gate, up  ->  linear(x, w[rows of the rank], b[rows of the rank])
        linear(x, w, b)    o, down            ->  all_reduce(linear(x, w[:, columns of the rank])) + b
        embedding(w, ids)                     ->  all_reduce(sharded_embedding(w[rows of the rank], ids))
        linear(x, w)       the head           ->  all_gather(linear(x, w[rows of the rank]))

    A vocabulary that does not divide is filled up with rows of zeros, whose logits are cut off:
    slice(all_gather(linear(x, w[rows of the rank])), -1, 0, vocab_size).

    With a scheme of exact sums, the shares of a row-parallel layer in floating point are summed in float32 and rounded
    once, (all_reduce(float32_linear(x, w[...])) + b).to(dtype), as one rank's are: shares that are rounded to 16 bit
    move the integers of the layers behind.

    Between a column-parallel and a row-parallel layer lie the rank's own heads or MLP columns. A key head that several
    ranks need is held by each of them. Collectives: two per decoder layer, one each for embedding and head.
    """

    shard: Shard

    name: ClassVar[str] = "shard_tensor_parallel"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.linears + 1)
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (aten.embedding.default,)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(aten.linear.default, aten.embedding.default)

    def prepare(self, graph: ModelGraph) -> None:
        check_world_size(graph.config, self.shard.world_size)
        graph.shard = self.shard
        for node in graph.calls(aten.reshape.default):
            if node.meta["layer"] in graph.family.attention_modules:
                _infer_heads(node)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        if candidate.target == aten.embedding.default:
            return self._embedding(graph, candidate)
        path = candidate.meta["layer"]
        if path not in graph.family.linears:
            raise NearMiss(candidate, f"the family does not say how {path!r} is shared")
        split, part = graph.family.linears[path].split, self.shard.part_of(graph.family, path)
        x, _, *bias = candidate.args
        weight = _part(graph, candidate, 1, *part)
        if split == "row":
            candidate.args = (x, weight)
            self._sum(graph, candidate, *bias)
            return
        candidate.args = (x, weight, *(_part(graph, candidate, 2, *part) for _ in bias))
        if split == "vocab":
            joined = _append(graph, candidate, ops.all_gather, self.shard.world_size)
            if graph.config.vocab_size % self.shard.world_size:
                _append(graph, joined, aten.slice.Tensor, -1, 0, graph.config.vocab_size)

    def apply(self, graph: ModelGraph) -> Outcome:
        outcome = super().apply(graph)
        graph.propagate()
        for node in graph.calls(aten.reshape.default):
            node.args = (node.args[0], list(node.meta["val"].shape))
        graph.module.recompile()
        return outcome

    def _sum(self, graph: ModelGraph, linear: fx.Node, *bias: object) -> None:
        wide = _sums_in_float32(graph, linear)
        if wide:
            linear.target = ops.float32_linear
        total = _append(graph, linear, ops.all_reduce)
        if bias:
            total = _append(graph, total, aten.add.Tensor, *bias)
        if wide:
            _append(graph, total, aten.to.dtype, graph.dtype)

    def _embedding(self, graph: ModelGraph, embedding: fx.Node) -> None:
        part = self.shard.part(graph.config.vocab_size)
        table = _part(graph, embedding, 0, 0, *part)
        rows = graph.insert(ops.sharded_embedding, table, embedding.args[1], rank_weight(graph), at=embedding)
        embedding.replace_all_uses_with(rows)
        _append(graph, rows, ops.all_reduce)


def _sums_in_float32(graph: ModelGraph, linear: fx.Node) -> bool:
    """Whether ranks sum their shares of a row-parallel layer's result in float32, not in 16 bit."""
    scheme, quantization = graph.scheme, graph.quantization
    if quantization is None or scheme is None or not scheme.exact_sums or graph.dtype == torch.float32:
        return False
    return linear.meta["layer"] not in quantization.linears


def rank_weight(graph: ModelGraph) -> fx.Node:
    """The rank, as a weight: so the graphs of all ranks are the same, their weights apart."""
    return graph.add_weight("rank", Constant((graph.shard.rank,)))


def _part(graph: ModelGraph, node: fx.Node, index: int, dim: int, start: int, stop: int) -> fx.Node:
    """A weight that is the part [start, stop) of argument `index` along `dim`."""
    whole = expression(node, index)
    return graph.add_weight(f"{operand(node, index).name}_part", whole.share(dim, start, stop, whole.shape[dim]))


def _append(graph: ModelGraph, node: fx.Node, target: object, *args: object) -> fx.Node:
    """Let a call of `target` on `node` take its place for all that use it."""
    result = graph.insert(target, node, *args, at=node.next)
    result.meta["layer"] = node.meta["layer"]
    node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
    return result


def _infer_heads(reshape: fx.Node) -> None:
    """Let the number of heads follow from the rank's projections: [batch, tokens, heads, head_dim] and back."""
    shape = reshape.args[1]
    assert isinstance(shape, (list, tuple))
    reshape.args = (reshape.args[0], [*shape[:2], -1, *shape[3:]])
