"""Sampling parameters of a request: how its tokens are chosen, and when it ends."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass
from typing import Any

from graph_gemma.graph_model.errors import UserError, shown

MAX_LOGPROBS = 20
GREEDY_BELOW = 1e-5  # a temperature below this would overflow float32 logits; it means greedy


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request. Raises UserError when a value is out of range."""

    temperature: float = 0.0  # 0 (or below 1e-5): the most likely token
    top_k: int = 0  # sample among the k most likely tokens; 0: no limit
    top_p: float = 1.0  # sample among the fewest most likely tokens whose probabilities reach top_p; 1: no limit
    seed: int | None = None  # key of the random numbers, 0 <= seed < 2**64; None: a new one, which the result has
    max_new_tokens: int = 128  # most tokens of the answer
    ignore_eos: bool = False  # go on after an end-of-sequence token
    stop: tuple[str, ...] = ()  # the answer ends before the first of these strings to be complete
    logprobs: int | None = None  # n: log-probability of each chosen token and of the n most likely (n <= 20)
    max_tokens: InitVar[int | None] = None  # another name of max_new_tokens

    def __post_init__(self, max_tokens: int | None) -> None:
        if max_tokens is not None:
            _integer("max_tokens", max_tokens, 1)
            if self.max_new_tokens not in (SamplingParams.max_new_tokens, max_tokens):
                raise UserError(
                    f"sampling.max_tokens is {max_tokens} and max_new_tokens {shown(self.max_new_tokens)}, which is "
                    "another name of the same. Give one of them."
                )
            object.__setattr__(self, "max_new_tokens", max_tokens)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        _number("temperature", self.temperature, "a finite number of at least 0", lambda value: value >= 0)
        _number("top_p", self.top_p, "above 0 and at most 1", lambda value: 0 < value <= 1)
        _integer("top_k", self.top_k, 0)
        _integer("max_new_tokens", self.max_new_tokens, 1)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"sampling.ignore_eos is {shown(self.ignore_eos)}; it must be true or false.")
        for text in stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop holds {shown(text)}; each stop string must be a text of at least one character.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, so that no random number is needed."""
        return self.temperature < GREEDY_BELOW


def _number(name: str, value: Any, rule: str, holds: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):
        raise UserError(f"sampling.{name} is {shown(value)}; it must be {rule}.")


def _integer(name: str, value: Any, smallest: int, largest: int | None = None) -> None:
    integer = isinstance(value, int) and not isinstance(value, bool)
    if not integer or value < smallest or (largest is not None and value > largest):
        above = "" if largest is None else f" and at most {largest}"
        raise UserError(f"sampling.{name} is {shown(value)}; it must be an integer of at least {smallest}{above}.")
