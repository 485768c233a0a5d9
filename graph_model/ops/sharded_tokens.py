"""Embedding, sampling and log-probabilities over a vocabulary shared by ranks, without gathering whole logits.

In all of them `rank` is int64 [1] on the device: graphs of different ranks differ in their weights only. Rank r has
the ids from r * size to (r + 1) * size. The results are those of the ops in graph_model.ops.tokens on the joined
logits, but for the order in which float32 sums are taken; they are equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ops.collective import all_gather, all_reduce, stack_ranks
from graph_gemma.graph_model.ops.registry import canonical_op
from graph_gemma.graph_model.ops.tokens import (
    NOT_FINITE,
    best_ids,
    log_probabilities,
    lowest,
    sample_token,
    token_logprobs,
)


@canonical_op("sharded_embedding(Tensor table, Tensor ids, Tensor rank) -> Tensor")
def sharded_embedding(table: Tensor, ids: Tensor, rank: Tensor) -> Tensor:
    """Rows of `ids` in this rank's table [size, hidden], 0 for ids of other ranks: the ranks' sum is the embedding."""
    local, inside = _local(ids, rank, table.shape[0])
    return torch.where(inside.unsqueeze(-1), F.embedding(local, table), 0.0)


@canonical_op("sharded_greedy_token(Tensor logits, Tensor rank, int world_size) -> Tensor")
def sharded_greedy_token(logits: Tensor, rank: Tensor, world_size: int) -> Tensor:
    """What `greedy_token` gives, from this rank's logits [..., size]: [...] int64.

    One collective of two float32 per row and rank; ids are below 2 ** 24, which float32 holds.
    """
    ids, finite = best_ids(logits)
    values = torch.where(finite, logits.gather(-1, ids).float(), torch.inf)
    best = stack_ranks(torch.cat((values, (ids + rank * logits.shape[-1]).float()), -1), world_size)
    owner = best[..., 0].argmax(0, keepdim=True)
    values, ids = (best[..., index].gather(0, owner).squeeze(0) for index in range(2))
    return torch.where(values < torch.inf, ids.long(), NOT_FINITE)


@canonical_op(
    "sharded_sample_token(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor uniform, Tensor rank,"
    " int world_size, int candidates) -> (Tensor, Tensor)"
)
def sharded_sample_token(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    rank: Tensor,
    world_size: int,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    """Draw an id per row as `sample_token` does: [batch] int64, and [batch] int32 that is 1 where that failed.

    The ranks gather their sum of exponentials and their `candidates` largest logits. From these follow the cut, the
    mass of each rank, and so the rank that the uniform falls into, which inverts its own distribution. A row fails
    if its top_k or nucleus reaches below what was gathered; `redraw` then takes the joined logits.
    """
    size = logits.shape[-1]
    cap = min(candidates, size)
    sampled = temperature > 0
    best_id, finite = best_ids(logits)
    scaled = torch.where(finite, logits.float() / torch.where(sampled, temperature, 1.0)[:, None], 0.0)
    top = scaled.topk(cap, -1).values
    total = (scaled - top[:, :1]).exp().sum(-1, keepdim=True)
    gathered = stack_ranks(torch.cat((torch.where(finite, total, torch.inf), top), -1), world_size)
    total, top = gathered[:, :, 0], gathered[:, :, 1:]  # [world_size, batch], [world_size, batch, cap]
    all_finite = total.max(0).values < torch.inf
    best = top[:, :, 0].max(0).values
    mass = total * (top[:, :, 0] - best).exp()  # [world_size, batch]

    limited = (top_k > 0) & (top_k < world_size * size)
    restricted = limited | (top_p < 1)
    threshold, count, needed = _cut(top.movedim(0, 1).flatten(1), best, mass.sum(0), limited, top_k, top_p)
    threshold = torch.where(restricted, threshold, -torch.inf)[:, None]
    missed = restricted & sampled & all_finite
    # Ids that were not gathered are at most as likely as the last candidate of their rank.
    missed = missed & (needed <= top[:, :, -1].max(0).values) if cap < size else torch.zeros_like(missed)

    # Of ids at the threshold the lowest are kept: those of the first ranks.
    above, at_threshold = top > threshold, (top == threshold).sum(-1)  # [world_size, batch, cap], [world_size, batch]
    room = (count - above.sum((0, 2))) - (at_threshold.cumsum(0) - at_threshold)
    room = torch.minimum(room.clamp(min=0), at_threshold)
    kept = torch.where(above, (top - best[:, None]).exp(), 0.0).sum(-1) + room * (threshold[:, 0] - best).exp()
    owner, residual = _draw(torch.where(restricted, kept, mass).T, uniform)
    greedy_owner = top[:, :, 0].argmax(0)
    own_room = room.gather(0, rank[:, None].expand(-1, room.shape[1])).T
    own_kept = (scaled > threshold) | lowest(scaled == threshold, own_room)
    weights = torch.where(own_kept, (scaled - best[:, None]).exp(), 0.0)
    drawn = _invert(weights.cumsum(-1), weights, residual[:, None])
    chosen = torch.where(sampled, drawn, best_id[:, 0]) + rank * size
    mine = torch.where(sampled, owner, greedy_owner) == rank
    # Rank 0 says for all whether a row failed, so that they agree whatever their arithmetic.
    answer = torch.stack((torch.where(mine, chosen, 0), torch.where(rank == 0, missed.long(), 0)))
    answer = all_reduce(answer.int())
    return torch.where(all_finite, answer[0].long(), NOT_FINITE), answer[1]


@canonical_op(
    "sharded_token_logprobs(Tensor logits, Tensor token_ids, int top, Tensor rank, int world_size)"
    " -> (Tensor, Tensor, Tensor)"
)
def sharded_token_logprobs(
    logits: Tensor, token_ids: Tensor, top: int, rank: Tensor, world_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `token_logprobs` returns, from this rank's logits [batch, size]. One collective."""
    size = logits.shape[-1]
    cap = min(top, size)
    logits = torch.where(token_ids[:, None] >= 0, logits, 0.0)
    values, ids = logits.float().topk(cap, -1)
    chosen, log_total, rest = _stack_sums(logits, token_ids, rank, world_size, values, (ids + rank * size).float())
    values, index = rest[..., :cap].movedim(0, 1).flatten(1).topk(top, -1)
    ids = rest[..., cap:].movedim(0, 1).flatten(1).gather(-1, index).long()
    return chosen, ids, values - log_total[:, None]


@canonical_op("sharded_target_logprobs(Tensor logits, Tensor target_ids, Tensor rank, int world_size) -> Tensor")
def sharded_target_logprobs(logits: Tensor, target_ids: Tensor, rank: Tensor, world_size: int) -> Tensor:
    """What `target_logprobs` returns, from this rank's logits [..., size]. One collective of three float32 per id."""
    return _stack_sums(logits, target_ids, rank, world_size)[0]


@canonical_op("sharded_log_probabilities(Tensor logits, int world_size) -> Tensor")
def sharded_log_probabilities(logits: Tensor, world_size: int) -> Tensor:
    """What `log_probabilities` returns, from this rank's logits: whole rows are asked for, so they are gathered."""
    return log_probabilities(all_gather(logits, world_size))


def redraw(outputs: Sequence[Tensor], sampling: Sequence[Tensor], top: int, world_size: int) -> list[Tensor]:
    """The outputs of a sharded sampling step as those of a whole one: rows that failed are drawn from all logits.

    outputs: token ids, with top >= 0 three of log-probabilities, which rows failed, this rank's logits.
    sampling: temperature, top_k, top_p, uniform, on the host; so is what is computed. All ranks call it, as they all
    know what failed.
    """
    token_ids, *logprobs, missed, logits = outputs
    missed = missed.cpu()
    if not missed.any():
        return [token_ids, *logprobs]
    whole = all_gather(logits.cpu(), world_size)
    token_ids = torch.where(missed > 0, sample_token(whole, *sampling), token_ids.cpu())
    return [token_ids, *(token_logprobs(whole, token_ids, top) if top >= 0 else ())]


def _stack_sums(
    logits: Tensor, ids: Tensor, rank: Tensor, world_size: int, *more: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of one id per row [...], what was subtracted from its logit, and the ranks' `more` stacked.

    The ranks gather the id's logit (0 where it is another's), their largest logit and the sum of exponentials.
    """
    logits = logits.float()
    local, inside = _local(ids, rank, logits.shape[-1])
    chosen = torch.where(inside[..., None], logits.gather(-1, local[..., None]), 0.0)
    maximum = logits.max(-1, keepdim=True).values
    total = (logits - maximum).exp().sum(-1, keepdim=True)
    gathered = stack_ranks(torch.cat((chosen, maximum, total, *more), -1), world_size)  # [world_size, ..., 3 + more]
    best = gathered[..., 1].max(0).values
    log_total = best + (gathered[..., 2] * (gathered[..., 1] - best).exp()).sum(0).log()
    return gathered[..., 0].sum(0) - log_total, log_total, gathered[..., 3:]


def _local(ids: Tensor, rank: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Index of each id among this rank's (0 for others' ids), and whether it is this rank's."""
    local = ids - rank * size
    inside = torch.logical_and(local >= 0, local < size)
    return torch.where(inside, local, 0), inside


def _cut(
    candidates: Tensor, best: Tensor, total: Tensor, limited: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest scaled logit that top_k and top_p keep of these candidates, and how many they keep: [batch] each.

    Third, the smallest that had to be known for that: the top_k-th, of which the nucleus is a share, or the first.
    candidates [batch, n]; best: the largest of each row; total: the sum of exponentials of logits less `best`.
    """
    ordered = candidates.sort(-1, descending=True).values
    size = ordered.shape[1]
    k = torch.where(limited, top_k, size).clamp(max=size)[:, None]
    inside = torch.arange(size, device=k.device) < k
    weights = torch.where(inside, (ordered - best[:, None]).exp(), 0.0)
    cumulative = weights.cumsum(-1)
    total = torch.where(limited, cumulative[:, -1], total)
    in_nucleus = ((cumulative - weights) < (top_p * total)[:, None]) | (top_p >= 1)[:, None]
    count = torch.minimum(in_nucleus.sum(-1, keepdim=True).clamp(min=1), k)
    kth, threshold = (ordered.gather(-1, number - 1).squeeze(-1) for number in (k, count))
    return threshold, count.squeeze(-1), torch.where(limited, kth, threshold)


def _draw(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The rank that the uniform falls into, [batch], and how far into it; mass [batch, world_size]."""
    cumulative = mass.cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    owner = _invert(cumulative, mass, target)
    below = cumulative.gather(-1, (owner - 1).clamp(min=0)[:, None])
    return owner, (target - torch.where((owner > 0)[:, None], below, 0.0)).squeeze(-1)


def _invert(cumulative: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds the target, at most the last one that has weight."""
    count = weights.shape[-1]
    last = count - 1 - (weights.flip(-1) > 0).int().argmax(-1)
    return torch.minimum((cumulative <= target).sum(-1), last)
