"""What the engine tells about a request: an event per token, and a result at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graph_model.bucket import StepOutput

FinishReason = Literal["stop", "length", "scored", "abort", "error"]


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities (natural logarithm) at one position of an answer."""

    logprob: float  # of the chosen token
    top: list[tuple[int, float]]  # (token id, log-probability) of the likeliest tokens, likeliest first

    @classmethod
    def of_row(cls, output: StepOutput, row: int, count: int) -> TokenLogprobs:
        """What a request for `count` likeliest tokens gets from a step that may have returned more."""
        assert output.logprob is not None
        top: list[tuple[int, float]] = []
        if count:
            assert output.top_ids is not None
            assert output.top_logprobs is not None
            ids, values = output.top_ids[row, :count].tolist(), output.top_logprobs[row, :count].tolist()
            top = list(zip(ids, values, strict=True))
        return cls(float(output.logprob[row]), top)


@dataclass(slots=True)
class Scores:
    """What a scoring request gets, S being the number of its positions.

    token_ids [S] int64: the likeliest token behind each position. logprobs float32: [S], of the targets, or
    [S, vocab], of every token.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray


@dataclass(slots=True)
class RequestResult:
    """A finished request.

    token_ids: every chosen token, the end-of-sequence token and those of a stop string included. text: their text up
    to a stop string, without special tokens and without an incomplete character at the end.
    finish_reason: ``stop`` - end of sequence or stop string; ``length`` - max_new_tokens or max_seq_len reached;
    ``scored`` - a scoring request, which has no tokens but `scores`; ``abort`` - cancelled; ``error`` - handling its
    tokens raised `error`.
    ttft_s: seconds from arrival to the first token. decode_tokens_per_s: of the tokens after the first.
    num_cached_tokens: prompt tokens that needed no computing because their blocks were cached.
    """

    request_id: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    seed: int
    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    scores: Scores | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    error: Exception | None = None


@dataclass(slots=True)
class TokenEvent:
    """News of a request: a token, its end, or both.

    token_id: None where only the end is told (scored, abort, error). text: what may be shown now; it lags behind
    the tokens while a character or a possible stop string is incomplete. result: set in the last event.
    """

    request_id: int
    token_id: int | None = None
    text: str = ""
    logprobs: TokenLogprobs | None = None
    result: RequestResult | None = None


def raise_errors(results: Iterable[RequestResult]) -> None:
    """Raise the first error that a request ended with: what is made of all results cannot do without one."""
    for result in results:
        if result.error is not None:
            raise result.error


def of_request(error: BaseException) -> Exception:
    """The error that ends one request: of any kind that a tokenizer or a callback raises, but for the program's end.

    A panic of a tokenizer written in Rust is no Exception, and would end the program that catches Exceptions.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
