"""Results of requests: an event per token, and a result at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graph_gemma.graph_model.bucket import StepOutput

FinishReason = Literal["stop", "length", "scored", "abort", "error"]


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities (natural logarithm) at one position of an answer."""

    logprob: float  # of the chosen token
    top: list[tuple[int, float]]  # (token id, log-probability), the most likely first

    @classmethod
    def of_row(cls, output: StepOutput, row: int, count: int) -> TokenLogprobs:
        """The `count` most likely tokens that a request asked for, of a step that may have returned more."""
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
    """Result of a scoring request with S positions."""

    token_ids: np.ndarray  # [S] int64: the most likely next token at each position
    logprobs: np.ndarray  # float32: [S], of the targets; or [S, vocab], of every token


@dataclass(slots=True)
class RequestResult:
    """A finished request.

    finish_reason: ``stop`` - end of sequence or stop string; ``length`` - max_new_tokens or max_seq_len reached;
    ``scored`` - a scoring request, which has no tokens but `scores`; ``abort`` - cancelled; ``error`` - handling its
    tokens raised `error`.
    """

    request_id: int
    prompt_token_ids: list[int]
    token_ids: list[int]  # every chosen token, the end-of-sequence token and those of a stop string included
    text: str  # of token_ids up to a stop string, without special tokens and an incomplete character at the end
    finish_reason: FinishReason
    seed: int
    ttft_s: float | None = None  # seconds from arrival to the first token
    decode_tokens_per_s: float | None = None  # of the tokens after the first
    logprobs: list[TokenLogprobs] | None = None
    scores: Scores | None = None
    num_cached_tokens: int = 0  # prompt tokens that were not computed, because their blocks were cached
    num_preemptions: int = 0
    error: Exception | None = None


@dataclass(slots=True)
class TokenEvent:
    """An event of a request: a new token, its end, or both."""

    request_id: int
    token_id: int | None = None  # None: only the end (scored, abort, error)
    text: str = ""  # what may be shown now; it comes later than its tokens where a character or stop string may go on
    logprobs: TokenLogprobs | None = None
    result: RequestResult | None = None  # set in the last event


def raise_errors(results: Iterable[RequestResult]) -> None:
    """Raise the first error that a request ended with, where a result is needed of every request."""
    for result in results:
        if result.error is not None:
            raise result.error


def of_request(error: BaseException) -> Exception:
    """The error that ends one request, whatever a tokenizer or a callback raised; KeyboardInterrupt is raised again.

    A panic of a tokenizer written in Rust is no Exception, and would end the program that catches Exceptions.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
