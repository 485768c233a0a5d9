"""Buckets: the static shapes that steps are compiled for, and the arrays that a step reads and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

Phase = Literal["prefill", "extend", "decode"]
Selection = Literal["greedy", "sample", "score", "distribution"]

# Tokens per block of the KV cache that the settings take.
BLOCK_SIZES = (16, 32, 64, 128)
_FEW_SCORED = 16  # answers of a few tokens share one bucket; whole texts take as many places as the chunk has


@dataclass(frozen=True, order=True)
class Bucket:
    """The static shape of one compiled step. A step with fewer rows, tokens or blocks is padded up to it."""

    # prefill: every row is the beginning of a sequence, so its chunk attends to itself only; extend: rows are chunks
    # that continue what their blocks already hold (any start, 0 included); decode: one token per row.
    phase: Phase
    batch: int  # rows
    chunk: int  # tokens per row; 1 in decode
    max_blocks_per_seq: int  # blocks per row of the block table; 0 in prefill, which reads no blocks
    # greedy: the most likely token; sample: with sampling inputs (rows of temperature 0 are greedy there too, so that
    # any mixture of requests fits one bucket). Not in decode: score chooses no token but gives the log-probabilities of
    # given tokens after given positions of the chunk, distribution those of all tokens.
    selection: Selection = "greedy"
    logprobs: int = -1  # this many of the most likely tokens' log-probabilities besides the chosen token's; -1: none
    scored: int = 0  # positions per row of score and distribution

    def __str__(self) -> str:
        shape = f"{self.phase}-b{self.batch}"
        if self.phase != "decode":
            shape += f"-t{self.chunk}"
        if self.max_blocks_per_seq:
            shape += f"-w{self.max_blocks_per_seq}"
        if self.selection != "greedy":
            shape += f"-{self.selection}{self.scored or ''}"
        return shape if self.logprobs < 0 else f"{shape}-logprobs{self.logprobs}"


@dataclass
class StepInputs:
    """Host arrays of one step; B = batch, T = chunk, W = max_blocks_per_seq, S = scored.

    None: the bucket has no such input.

    Padding. Tokens of a row beyond its ``query_lens`` and whole padded rows have id 0, position 0 and a scratch slot
    of their own in ``slot_mapping`` (all slots of a step are distinct). Padded rows have length 1 in both length
    arrays and block 0 in the whole of their block table; unused entries of a block table are 0 (a scratch block).

    Layers with a window keep keys and values in a pool of blocks of their own, with a slot mapping and a block table
    of their own. That table has the same places: entry i is for tokens from i * block_size on. Blocks before those that
    the row's tokens see need not be there; their entries are 0.
    """

    input_ids: np.ndarray  # [B, T] int64
    positions: np.ndarray  # [B, T] int64
    slot_mapping: np.ndarray  # [B, T] int64: block * block_size + offset, where the token's key and value go
    context_lens: np.ndarray | None = None  # [B] int64: tokens in the row's blocks, this chunk's included
    query_lens: np.ndarray | None = None  # [B] int64: tokens of the chunk that are not padding; not in decode
    block_table: np.ndarray | None = None  # [B, W] int64
    window_slot_mapping: np.ndarray | None = None  # [B, T] int64; None: no layer has a window
    window_block_table: np.ndarray | None = None  # [B, W] int64
    temperature: np.ndarray | None = None  # [B] float32, 0: greedy
    top_k: np.ndarray | None = None  # [B] int64, 0: no limit
    top_p: np.ndarray | None = None  # [B] float32, 1: no limit
    uniform: np.ndarray | None = None  # [B] float32 in [0, 1)
    score_positions: np.ndarray | None = None  # [B, S] int64: places in the chunk, in any order; padding: 0
    target_ids: np.ndarray | None = None  # [B, S] int64: the token that follows each of them and is scored; padding: 0

    def arrays(self) -> dict[str, np.ndarray]:
        """The inputs that are present, by name, in the order of the fields."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in present.items() if array is not None}

    def sampling(self) -> list[np.ndarray]:
        """temperature, top_k, top_p and uniform of a bucket that samples."""
        present = (self.temperature, self.top_k, self.top_p, self.uniform)
        return [array for array in present if array is not None]


@dataclass(frozen=True)
class StepOutput:
    """What a step returns, as host arrays; K = bucket.logprobs, S = bucket.scored."""

    # [B] int64: the token chosen after each row's last real token; [B, S]: the most likely after each scored position;
    # below 0 where the logits are not finite
    token_ids: np.ndarray
    # [B] float32: log-probability of the chosen token; [B, S]: of the targets; [B, S, vocab]: of every token
    logprob: np.ndarray | None = None
    top_ids: np.ndarray | None = None  # [B, K] int64, most likely first
    top_logprobs: np.ndarray | None = None  # [B, K] float32

    def not_finite(self, places: Sequence[int]) -> list[int]:
        """Rows with logits, or log-probabilities of targets, that are not finite in their first `places[row]` places.

        A row has one place if a token is chosen, and one for each scored position otherwise.
        """
        broken = self.token_ids < 0
        if broken.ndim == 2 and self.logprob is not None and self.logprob.ndim == 2:
            broken = broken | ~np.isfinite(self.logprob)
        if not broken.any():
            return []
        broken = broken.reshape(len(broken), -1)
        return [row for row, count in enumerate(places) if broken[row, :count].any()]


def pool_input(name: str, window: int | None) -> str:
    """The name of the slot mapping or block table that a layer with such a window reads."""
    return name if window is None else f"window_{name}"


def make_inputs(bucket: Bucket, windowed: bool) -> StepInputs:
    """Arrays of the bucket's shape in which every row is padding, except that slots are all 0.

    windowed: whether the model has layers with a window.
    """
    batch, chunk = bucket.batch, bucket.chunk
    inputs = StepInputs(
        input_ids=np.zeros((batch, chunk), np.int64),
        positions=np.zeros((batch, chunk), np.int64),
        slot_mapping=np.zeros((batch, chunk), np.int64),
    )
    if bucket.phase != "decode":
        inputs.query_lens = np.ones(batch, np.int64)
    if bucket.phase != "prefill":
        inputs.context_lens = np.ones(batch, np.int64)
        inputs.block_table = np.zeros((batch, bucket.max_blocks_per_seq), np.int64)
    if windowed:
        inputs.window_slot_mapping = np.zeros_like(inputs.slot_mapping)
        if inputs.block_table is not None:
            inputs.window_block_table = np.zeros_like(inputs.block_table)
    if bucket.selection == "sample":
        inputs.temperature = np.zeros(batch, np.float32)
        inputs.top_k = np.zeros(batch, np.int64)
        inputs.top_p = np.ones(batch, np.float32)
        inputs.uniform = np.zeros(batch, np.float32)
    if bucket.scored:
        inputs.score_positions = np.zeros((batch, bucket.scored), np.int64)
    if bucket.selection == "score":
        inputs.target_ids = np.zeros((batch, bucket.scored), np.int64)
    return inputs


@dataclass(frozen=True)
class BucketTable:
    """The buckets a model serves with: each dimension is rounded up to the next size listed here."""

    batch_sizes: tuple[int, ...]
    prefill_batch_sizes: tuple[int, ...]
    chunk_lengths: tuple[int, ...]
    table_widths: tuple[int, ...]
    max_step_tokens: int  # rows x tokens of the largest prefill or extend step, padding included

    def choose(
        self,
        phase: Phase,
        rows: int,
        tokens: int = 1,
        blocks: int = 0,
        selection: Selection = "greedy",
        logprobs: int = -1,
        scored: int = 0,
    ) -> Bucket:
        """The smallest bucket for `rows` rows, of which none has more than `tokens` tokens, `blocks` blocks and
        `scored` scored positions."""
        decode = phase == "decode"
        chunk = 1 if decode else round_up(tokens, self.chunk_lengths)
        return Bucket(
            phase=phase,
            batch=round_up(rows, self.batch_sizes if decode else self.prefill_batch_sizes),
            chunk=chunk,
            max_blocks_per_seq=0 if phase == "prefill" else round_up(blocks, self.table_widths),
            selection=selection,
            logprobs=logprobs,
            scored=min(scored, 1) * _FEW_SCORED if scored <= _FEW_SCORED else -(-scored // chunk) * chunk,
        )

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether a prefill or extend step of `rows` rows, the longest of `tokens` tokens, stays within bounds."""
        if rows > self.prefill_batch_sizes[-1] or tokens > self.chunk_lengths[-1]:
            return False
        padded = round_up(rows, self.prefill_batch_sizes) * round_up(tokens, self.chunk_lengths)
        return padded <= self.max_step_tokens

    @property
    def num_scratch_slots(self) -> int:
        """Slots that padding may write to in one step: as many as the largest step has tokens."""
        return max(self.max_step_tokens, self.batch_sizes[-1])


def round_up(value: int, sizes: tuple[int, ...]) -> int:
    """The smallest of the ascending `sizes` that holds `value`."""
    for size in sizes:
        if size >= value:
            return size
    raise ValueError(f"{value} is above the largest size, {sizes[-1]}")


def powers_of_two(smallest: int, largest: int) -> tuple[int, ...]:
    """smallest, 2 * smallest, ... below `largest`, then `largest` itself."""
    sizes = []
    size = smallest
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)
