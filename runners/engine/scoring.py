"""Scoring: log-probabilities of given tokens, in place of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from graph_gemma.graph_model.bucket import StepInputs, StepOutput
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.result import Scores

Kind = Literal["score", "distribution"]


@dataclass(frozen=True)
class ScoreRequest:
    """Which next tokens of a text are scored."""

    token_ids: list[int]  # the text, as far as it is computed
    positions: list[int]  # ascending, 0 <= position < len(token_ids); repeated where several next tokens are scored
    target_ids: list[int] | None = None  # the token after each position; None: the log-probabilities of all tokens

    @classmethod
    def continuation(cls, context: list[int], continuation: list[int]) -> ScoreRequest:
        """Score every token of `continuation` after `context`, which has at least one token."""
        token_ids = context + continuation
        return cls(token_ids[:-1], list(range(len(context) - 1, len(token_ids) - 1)), continuation)


@dataclass(eq=False)
class Scoring:
    """Positions and targets of a scoring request, and its scores as far as its chunks were computed."""

    positions: np.ndarray
    target_ids: np.ndarray | None
    token_ids: np.ndarray = field(init=False)
    logprobs: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.token_ids = np.zeros(len(self.positions), np.int64)

    @property
    def kind(self) -> Kind:
        return "distribution" if self.target_ids is None else "score"

    def within(self, start: int, count: int) -> slice:
        """Which of the positions lie in the chunk of `count` tokens from `start`."""
        first, end = np.searchsorted(self.positions, [start, start + count])
        return slice(int(first), int(end))

    def fill(self, inputs: StepInputs, row: int, start: int, count: int) -> None:
        """Write the chunk's positions and targets into a row of a step's inputs."""
        here = self.within(start, count)
        assert inputs.score_positions is not None
        inputs.score_positions[row, : here.stop - here.start] = self.positions[here] - start
        if inputs.target_ids is not None and self.target_ids is not None:
            inputs.target_ids[row, : here.stop - here.start] = self.target_ids[here]

    def take(self, output: StepOutput, row: int, start: int, count: int) -> None:
        """Keep what a step says about the chunk; a chunk that is computed again overwrites the same."""
        here = self.within(start, count)
        found = here.stop - here.start
        if not found:
            return
        assert output.logprob is not None
        if self.logprobs is None:
            self.logprobs = np.zeros((len(self.positions), *output.logprob.shape[2:]), np.float32)
        self.token_ids[here] = output.token_ids[row, :found]
        self.logprobs[here] = output.logprob[row, :found]

    def scores(self) -> Scores | None:
        """All of them; None if some chunk was not computed."""
        return None if self.logprobs is None else Scores(self.token_ids, self.logprobs)


def make_scoring(request: ScoreRequest, vocab_size: int | None) -> Scoring:
    """Raises UserError if the request's numbers do not fit together."""
    positions = np.asarray(request.positions, np.int64)
    if (
        not len(positions)
        or (np.diff(positions) < 0).any()
        or not 0 <= positions[0] <= positions[-1] < len(request.token_ids)
    ):
        raise UserError(
            f"A request scores the positions {request.positions} of a text of {len(request.token_ids)} tokens; there "
            "must be at least one, in ascending order, and each must lie in the text."
        )
    if request.target_ids is None:
        return Scoring(positions, None)
    targets = np.asarray(request.target_ids, np.int64)
    if targets.shape != positions.shape or targets.min() < 0 or (vocab_size and targets.max() >= vocab_size):
        raise UserError(
            f"A request scores {len(request.target_ids)} tokens at {len(positions)} positions; there must be one for "
            "each, of the vocabulary."
        )
    return Scoring(positions, targets)
