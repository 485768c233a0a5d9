"""Choose tokens in the graph: the last token's row, greedy choice, sampling, log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op

NOT_FINITE = -1  # in place of a token id: the logits that it would be chosen by hold NaN, or their largest is infinite


@canonical_op("last_token(Tensor x, Tensor query_lens) -> Tensor")
def last_token(x: Tensor, query_lens: Tensor) -> Tensor:
    """x[b, query_lens[b] - 1] for each row: [batch, tokens, size] -> [batch, size]."""
    index = (query_lens - 1)[:, None, None].expand(-1, 1, x.shape[2])
    return x.gather(1, index).squeeze(1)


@canonical_op("take_tokens(Tensor x, Tensor positions) -> Tensor")
def take_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """x[b, positions[b, s]] for each row: [batch, tokens, size], int64 [batch, s] -> [batch, s, size]."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[2]))


@canonical_op("greedy_token(Tensor logits) -> Tensor")
def greedy_token(logits: Tensor) -> Tensor:
    """The most likely id of each row, the lowest of equals, or NOT_FINITE: [..., vocab] -> [...] int64."""
    ids, finite = best_ids(logits)
    return torch.where(finite, ids, NOT_FINITE).squeeze(-1)


@canonical_op("sample_token(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor uniform) -> Tensor")
def sample_token(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw an id per row from softmax(logits / temperature), cut to the top_k most likely, then to the top_p nucleus.

    logits [batch, vocab]; temperature [batch] float32, 0: the most likely id; top_k [batch] int64, 0: no limit;
    top_p [batch] float32, 1: no limit; uniform [batch] float32 in [0, 1). Returns [batch] int64, NOT_FINITE for a row
    whose logits are not finite.

    Of equally likely ids the lowest are kept, so that top_k=1 or a tiny top_p is the greedy choice. The draw inverts
    the cumulative distribution in the order of the ids, so that a row's result does not depend on whether another row
    of the batch is cut. Top-k as in Fan et al., arXiv:1805.04833, the nucleus as in Holtzman et al.,
    arXiv:1904.09751: the fewest ids that reach top_p together.
    """
    vocab = logits.shape[-1]
    best, finite = best_ids(logits)
    scaled = torch.where(finite, logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None], 0.0)
    ordered = scaled.sort(-1, descending=True).values
    k = torch.where((top_k > 0) & (top_k < vocab), top_k, vocab)[:, None]
    ordered_p = torch.where(torch.arange(vocab, device=k.device) < k, ordered, -torch.inf).softmax(-1)
    # An id is in the nucleus while what stands before it is below top_p.
    before = ordered_p.cumsum(-1) - ordered_p
    in_nucleus = (before < top_p[:, None]) | (top_p >= 1)[:, None]
    count = torch.minimum(in_nucleus.sum(-1, keepdim=True).clamp(min=1), k)
    threshold = ordered.gather(-1, count - 1)
    above = scaled > threshold
    kept = above | lowest(scaled == threshold, count - above.sum(-1, keepdim=True))
    weights = torch.where(kept, scaled, -torch.inf)
    cumulative = weights.softmax(-1).cumsum(-1)
    # Scaling the uniform by the rounded total keeps it inside the distribution.
    target = uniform[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(-1, keepdim=True).clamp(max=vocab - 1)
    # Rounding may land on an id of probability zero after the last kept one: step back to the last kept.
    last_kept = vocab - 1 - (weights.flip(-1) > -torch.inf).int().argmax(-1).unsqueeze(-1)
    drawn = torch.minimum(drawn, last_kept)
    return torch.where(finite, torch.where((temperature > 0)[:, None], drawn, best), NOT_FINITE).squeeze(-1)


@canonical_op("token_logprobs(Tensor logits, Tensor token_ids, int top) -> (Tensor, Tensor, Tensor)")
def token_logprobs(logits: Tensor, token_ids: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the chosen ids, and the `top` most likely ids with theirs, before temperature and cuts.

    logits [batch, vocab], token_ids [batch]. Returns [batch] float32, [batch, top] int64, [batch, top] float32; what a
    row whose token is NOT_FINITE gets has no meaning.
    """
    logprobs = log_probabilities(torch.where(token_ids[:, None] >= 0, logits, 0.0))
    values, ids = logprobs.topk(top, dim=-1)
    return _take(logprobs, token_ids.clamp(min=0)), ids, values


@canonical_op("target_logprobs(Tensor logits, Tensor target_ids) -> Tensor")
def target_logprobs(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Log-probability of one given id per row: logits [..., vocab], int64 [...] -> [...] float32."""
    return _take(log_probabilities(logits), target_ids)


@canonical_op("log_probabilities(Tensor logits) -> Tensor")
def log_probabilities(logits: Tensor) -> Tensor:
    """Natural logarithm of the softmax in float32: [..., vocab] -> [..., vocab]."""
    return logits.float().log_softmax(-1)


def _take(x: Tensor, ids: Tensor) -> Tensor:
    """x[..., ids[...]]: [..., vocab], [...] -> [...]."""
    return x.gather(-1, ids[..., None]).squeeze(-1)


def best_ids(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely id of each row, the lowest of equals, and whether its logit is finite: [..., 1] each.

    NaN counts as the largest. A row of NaN alone, as a NaN in the hidden state makes it, is found however a device
    orders NaN.
    """
    ids = logits.argmax(-1).unsqueeze(-1)
    return ids, logits.gather(-1, ids).abs() < torch.inf


def lowest(mask: Tensor, count: Tensor) -> Tensor:
    """The first `count` of the true elements of each row: bool [batch, n], int64 [batch, 1] -> bool [batch, n].

    They are counted in float32, which holds every integer below 2 ** 24.
    """
    return mask & (mask.float().cumsum(-1) <= count)
