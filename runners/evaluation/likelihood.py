"""Log-likelihoods of continuations, through the engine's scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine import EngineDriver, ScoreRequest, TokenEvent

Pair = tuple[list[int], list[int]]  # token ids: context (at least one), continuation (at least one)


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of a continuation after its context."""

    logprob: float  # natural logarithm of the probability
    is_greedy: bool  # whether greedy decoding would give it


def loglikelihoods(llm: EngineDriver, pairs: Sequence[Pair], description: str, max_seq_len: int) -> list[Likelihood]:
    """Score each continuation after its context; a pair longer than max_seq_len tokens loses its beginning.

    Pairs that need the same tokens computed, such as the choices of a question that are one token each, are one
    request; requests run in the same steps and share their beginnings. A bar shows the progress in pairs. Raises
    UserError if a continuation alone is too long.
    """
    requests = [ScoreRequest.continuation(*_cut(pair, max_seq_len)) for pair in pairs]
    merged: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        merged.setdefault(tuple(request.token_ids), []).append(index)
    groups = list(merged.values())
    places = [sorted((p, i, n) for i in group for n, p in enumerate(requests[i].positions)) for group in groups]
    combined = [
        ScoreRequest(
            requests[group[0]].token_ids,
            [position for position, _, _ in place],
            [(requests[i].target_ids or [])[n] for _, i, n in place],
        )
        for group, place in zip(groups, places, strict=True)
    ]
    with tqdm(total=len(pairs), desc=description, unit="continuation") as bar:

        def follow(group: int, event: TokenEvent) -> None:
            bar.update(len(groups[group]))

        found = llm.score(combined, follow)
    logprobs = [0.0] * len(pairs)
    greedy = [True] * len(pairs)
    for place, scores in zip(places, found, strict=True):
        for (_, index, number), logprob, best in zip(
            place, scores.logprobs.tolist(), scores.token_ids.tolist(), strict=True
        ):
            logprobs[index] += logprob
            greedy[index] &= best == (requests[index].target_ids or [])[number]
    return [Likelihood(*both) for both in zip(logprobs, greedy, strict=True)]


def windows(token_ids: list[int], size: int, bos: int | None = None) -> Iterator[Pair]:
    """Pairs that predict every token but the first once, each from at most `size` tokens.

    The windows of lm-evaluation-harness: each begins with the last token of the one before it; the last one reaches
    back as far as it can. bos: a token that every window begins with, of its `size` too; None: only what
    `token_ids` begins with.
    """
    step = size if bos is None else size - 1
    for first in range(1, len(token_ids), step):
        end = min(first + step, len(token_ids))
        context = token_ids[max(0, end - 1 - step) : first]
        yield context if bos is None or bos == context[0] else [bos, *context], token_ids[first:end]


def _cut(pair: Pair, max_seq_len: int) -> Pair:
    context, continuation = pair
    if len(continuation) >= max_seq_len:
        raise UserError(
            f"max_seq_len is {max_seq_len}, and a continuation of {len(continuation)} tokens is to be scored after at "
            "least one token. Raise max_seq_len."
        )
    return context[max(0, len(context) + len(continuation) - max_seq_len) :], continuation
