"""How far apart two sides are: token agreement and the KL divergence of next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_KL = 1e-3
SMALL_KL = 1e-4
MAX_SHARE = 0.005


@dataclass
class Position:
    """A place where the sides' likeliest tokens differ: text, number of the answer's token, both tokens with both
    sides' log-probabilities."""

    text: int
    step: int
    tokens: tuple[int, int]
    logprobs_a: tuple[float, float]
    logprobs_b: tuple[float, float]


@dataclass
class Divergence:
    """positions: compared places. agreement: share where both sides' likeliest tokens are equal, on the same prefix.
    first: the first place in each text where they differ. kl: KL(a || b) of each place, in nats. same_answers: texts
    that both sides, left alone, answer alike."""

    positions: int = 0
    agreement: float = 1.0
    same_answers: int = 0
    texts: int = 0
    first: list[Position] = field(default_factory=list)
    kl: np.ndarray = field(default_factory=lambda: np.zeros(0))

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
    """a, b: log-probabilities [sum of lengths, vocab]; lengths: compared places of each text."""
    best_a, best_b = a.argmax(-1), b.argmax(-1)
    first = []
    start = 0
    for text, length in enumerate(lengths):
        differ = np.flatnonzero(best_a[start : start + length] != best_b[start : start + length])
        if len(differ):
            place = start + int(differ[0])
            tokens = (int(best_a[place]), int(best_b[place]))
            at_a, at_b = (tuple(float(side[place, token]) for token in tokens) for side in (a, b))
            first.append(Position(text, int(differ[0]), tokens, at_a, at_b))  # type: ignore[arg-type]
        start += length
    return Divergence(
        positions=len(a),
        agreement=float((best_a == best_b).mean()),
        same_answers=sum(x == y for x, y in zip(answers_a, answers_b, strict=True)),
        texts=len(lengths),
        first=first,
        kl=kl_divergence(a, b),
    )
