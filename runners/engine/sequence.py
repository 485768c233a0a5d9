"""Sequence: the state of one request while the engine serves it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from graph_gemma.runners.engine.block_manager import HeldBlocks
from graph_gemma.runners.engine.detokenizer import Detokenizer
from graph_gemma.runners.engine.result import TokenEvent, TokenLogprobs
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.engine.scoring import Scoring
from graph_gemma.runners.engine.stop_matcher import StopMatcher


@dataclass(eq=False)
class Sequence:
    """A request's tokens and where their keys and values are.

    A sequence waits (it holds nothing), runs (it holds blocks and a row of InputBatch), or has ended.
    """

    request_id: int  # ascending with arrival: the scheduler's priority
    token_ids: array[int]  # prompt, then answer
    num_prompt_tokens: int
    max_tokens: int  # length at which it ends
    sampling: SamplingParams
    seed: int
    arrival_time: float
    detokenizer: Detokenizer | None = None
    stop_matcher: StopMatcher | None = None
    on_event: Callable[[TokenEvent], None] | None = None
    scoring: Scoring | None = None  # None: it makes an answer; else next tokens of its prompt are scored

    row: int = -1  # row in InputBatch, -1: does not run
    held: HeldBlocks = field(default_factory=HeldBlocks)
    num_computed: int = 0  # tokens whose keys and values are in the blocks
    received: bool = False  # the scheduler has it
    aborted: bool = False

    num_cached_tokens: int = 0  # prompt tokens that were found in the cache when it was first admitted
    num_preemptions: int = 0
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    first_token_time: float | None = None
    last_token_time: float | None = None

    @property
    def shareable(self) -> array[int]:
        """The tokens of which all but the last may be found in the cache: what is scored has to be computed."""
        return self.token_ids if self.scoring is None else self.token_ids[: int(self.scoring.positions[0]) + 1]

    @property
    def num_new_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens
