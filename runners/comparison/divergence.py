"""Token agreement and KL divergence of two sides' next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from graph_gemma.graph_model.errors import UserError

MAX_KL = 1e-3
SMALL_KL = 1e-4
MAX_SHARE = 0.005


@dataclass
class Divergence:
    """Sides a and b compared in P places: the next token after every prefix of each text's answer."""

    texts: np.ndarray  # [P], which text
    steps: np.ndarray  # [P], which token of its answer
    kl: np.ndarray  # [P], KL(a || b) in nats
    best: np.ndarray  # [P, 2], the most likely token of a and of b
    logprobs_a: np.ndarray  # [P, 2], what side a gives those two tokens
    logprobs_b: np.ndarray  # [P, 2], what side b gives them
    num_texts: int
    same_answers: int  # texts that both sides, left alone, answer alike
    first: int | None = field(init=False)  # the first place where the most likely tokens differ

    def __post_init__(self) -> None:
        differ = np.flatnonzero(self.best[:, 0] != self.best[:, 1])
        self.first = int(differ[0]) if len(differ) else None

    @property
    def agreement(self) -> float:
        """Share of the places where both sides' most likely tokens are equal, on the same prefix."""
        return float((self.best[:, 0] == self.best[:, 1]).mean())

    @property
    def share(self) -> float:
        """Share of the places whose KL divergence is above 1e-4."""
        return float((self.kl > SMALL_KL).mean())

    @property
    def passes(self) -> bool:
        """The rule for two ways to compute the same precision: MindIE-LLM's accuracy test has it."""
        return bool(self.kl.max() <= MAX_KL) and self.share <= MAX_SHARE


def kl_divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KL(a || b) in nats of log-probabilities [positions, vocab], in float64; never below 0."""
    kl = np.empty(len(a))
    for index, (row_a, row_b) in enumerate(zip(a, b, strict=True)):  # a row at a time: a vocabulary may be large
        p, q = row_a.astype(np.float64), row_b.astype(np.float64)
        p -= np.log(np.exp(p).sum())
        q -= np.log(np.exp(q).sum())
        kl[index] = np.exp(p) @ (p - q)
    return np.maximum(kl, 0.0)


def compare(
    a: np.ndarray, b: np.ndarray, lengths: Sequence[int], answers_a: list[list[int]], answers_b: list[list[int]]
) -> Divergence:
    """a, b: log-probabilities [sum of lengths, vocab]; lengths: compared places of each text. Raises UserError."""
    if not len(a):
        raise UserError("There is nothing to compare: the answers are empty.")
    if a.shape != b.shape:
        raise UserError(
            f"a has a vocabulary of {a.shape[1]} tokens and b one of {b.shape[1]}; only models with the same "
            "vocabulary can be compared."
        )
    best = np.stack([a.argmax(-1), b.argmax(-1)], axis=-1)
    return Divergence(
        texts=np.repeat(np.arange(len(lengths)), lengths),
        steps=np.concatenate([np.arange(length) for length in lengths]),
        kl=kl_divergence(a, b),
        best=best,
        logprobs_a=np.take_along_axis(a, best, axis=-1),
        logprobs_b=np.take_along_axis(b, best, axis=-1),
        num_texts=len(lengths),
        same_answers=sum(x == y for x, y in zip(answers_a, answers_b, strict=True)),
    )
