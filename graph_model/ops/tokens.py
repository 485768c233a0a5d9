"""Choosing tokens in the graph: the last token's row, greedy choice, sampling, log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_model.ops.registry import canonical_op


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
    """The likeliest id of each row, the lowest of equals: [..., vocab] -> [...] int64."""
    return logits.argmax(-1)


@canonical_op("sample_token(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor uniform) -> Tensor")
def sample_token(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw an id per row from softmax(logits / temperature), cut to the top_k likeliest, then to the top_p nucleus.

    logits [batch, vocab]; temperature [batch] float32, 0: the likeliest id; top_k [batch] int64, 0: no limit;
    top_p [batch] float32, 1: no limit; uniform [batch] float32 in [0, 1). Returns [batch] int64.

    Ids as likely as the last one kept are kept too. The draw inverts the cumulative distribution in the order of the
    ids, so that a row's result does not depend on whether another row of the batch is cut. Top-k as in Fan et al.,
    arXiv:1805.04833, the nucleus as in Holtzman et al., arXiv:1904.09751: the fewest ids that reach top_p together.
    """
    vocab = logits.shape[-1]
    scaled = logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    ordered = scaled.sort(-1, descending=True).values
    # The k-th likeliest is the last one kept.
    k = torch.where((top_k > 0) & (top_k < vocab), top_k, vocab)
    kth = ordered.gather(-1, (k - 1)[:, None])
    ordered_p = torch.where(ordered >= kth, ordered, -torch.inf).softmax(-1)
    # An id is in the nucleus while what stands before it is below top_p.
    before = ordered_p.cumsum(-1) - ordered_p
    in_nucleus = (before < top_p[:, None]) | (top_p >= 1)[:, None]
    count = in_nucleus.sum(-1, keepdim=True).clamp(min=1)
    threshold = torch.maximum(kth, ordered.gather(-1, count - 1))
    kept = torch.where(scaled >= threshold, scaled, -torch.inf)
    cumulative = kept.softmax(-1).cumsum(-1)
    # Scaling the uniform by the rounded total keeps it inside the distribution.
    target = uniform[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(-1).clamp(max=vocab - 1)
    # Rounding may land on an id of probability zero behind the last kept one: step back to the last kept.
    last_kept = vocab - 1 - (kept.flip(-1) > -torch.inf).int().argmax(-1)
    drawn = torch.minimum(drawn, last_kept)
    return torch.where(temperature > 0, drawn, logits.argmax(-1))


@canonical_op("token_logprobs(Tensor logits, Tensor token_ids, int top) -> (Tensor, Tensor, Tensor)")
def token_logprobs(logits: Tensor, token_ids: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the chosen ids, and the `top` likeliest ids with theirs, before temperature and cuts.

    logits [batch, vocab], token_ids [batch]. Returns [batch] float32, [batch, top] int64, [batch, top] float32.
    """
    logprobs = log_probabilities(logits)
    values, ids = logprobs.topk(top, dim=-1)
    return _take(logprobs, token_ids), ids, values


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
