"""Choose the token from each rank's part of the logits."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import PaddingMask
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, operand, require
from graph_gemma.passes.framework.matches import Counted
from graph_gemma.passes.shard_tensor_parallel import rank_weight

aten = torch.ops.aten

_SHARDED = {
    ops.greedy_token: ops.sharded_greedy_token,
    ops.token_logprobs: ops.sharded_token_logprobs,
    ops.target_logprobs: ops.sharded_target_logprobs,
}
_SELECTIONS = (*_SHARDED, ops.sample_token, ops.log_probabilities)


@dataclass(frozen=True)
class ShardTokenSelection(Pass):
    """Whole logits are not gathered, unless they are what is asked for.

    ::

        greedy_token(all_gather(x))             ->  sharded_greedy_token(x, rank)
        sample_token(all_gather(x), settings)   ->  sharded_sample_token(x, settings, rank, candidates)
        token_logprobs(all_gather(x), ids, n)   ->  sharded_token_logprobs(x, ids, n, rank)
        target_logprobs(all_gather(x), ids)     ->  sharded_target_logprobs(x, ids, rank)
        log_probabilities(all_gather(x))        ->  sharded_log_probabilities(x)

    A soft-cap between the two is computed on the rank's part. Where the vocabulary is filled up, x becomes
    x + padding_mask, -inf for rows past its end, and what was cut off after the gathering is cut off after
    sharded_log_probabilities.

    A greedy choice is the same; a draw sums probabilities in another order. A sampling step also returns which rows
    could not be drawn, and the rank's logits for them: see `ops.redraw`.
    candidates: likeliest logits that each rank hands in; rows with a larger top_k, or a nucleus that reaches further,
    are drawn again from all logits.
    """

    candidates_per_rank: int = 256

    name: ClassVar[str] = "shard_token_selection"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = Counted(
        lambda graph: 1 + (graph.bucket.logprobs >= 0) + (graph.bucket.selection in ("score", "distribution"))
    )
    after: ClassVar[tuple[str, ...]] = ("shard_tensor_parallel", "select_token")
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (ops.all_gather, *_SELECTIONS)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(*_SELECTIONS)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        padded = graph.config.vocab_size % graph.shard.world_size > 0
        source = operand(candidate, 0)
        capped = source if source.target == ops.softcap else candidate
        joined = operand(capped, 0, aten.slice.Tensor) if padded else capped
        gathered = operand(joined, 0, ops.all_gather)
        logits, world_size = gathered.args
        require(world_size == graph.shard.world_size, gathered, f"gathers from {world_size} ranks")
        if capped is source:
            logits = _capped(graph, logits, source)
        if padded:
            logits = graph.insert(aten.add.Tensor, logits, _padding_mask(graph), at=candidate)
        rank = rank_weight(graph)
        options = candidate.args[1:]
        if candidate.target == ops.sample_token:
            count = self.candidates_per_rank
            both = graph.insert(ops.sharded_sample_token, logits, *options, rank, world_size, count, at=candidate)
            result, missed = (graph.insert(operator.getitem, both, index, at=candidate) for index in range(2))
            graph.set_outputs(*graph.outputs, missed, logits)  # type: ignore[arg-type]
        elif candidate.target == ops.log_probabilities:
            result = graph.insert(ops.sharded_log_probabilities, logits, world_size, at=candidate)
            if padded:
                result = graph.insert(aten.slice.Tensor, result, -1, 0, graph.config.vocab_size, at=candidate)
        else:
            sharded = _SHARDED[candidate.target]  # type: ignore[index]
            result = graph.insert(sharded, logits, *options, rank, world_size, at=candidate)
        candidate.replace_all_uses_with(result)


def _capped(graph: ModelGraph, logits: Any, whole: fx.Node) -> fx.Node:
    """The rank's logits as `whole` caps those of all ranks; computed once for all that reads them."""
    known = [user for user in logits.users if user.target == ops.softcap]
    return known[0] if known else graph.insert(ops.softcap, logits, *whole.args[1:], at=whole)


def _padding_mask(graph: ModelGraph) -> fx.Node:
    """What keeps logits of rows past the vocabulary's end from being chosen and from having probability."""
    start, stop = graph.shard.part(graph.config.vocab_size)
    real = min(stop, graph.config.vocab_size) - start
    return graph.add_weight("padding_mask", PaddingMask(stop - start, real, graph.dtype))
