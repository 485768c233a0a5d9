"""StepModel: the interface of a compiled model that the engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput


class StepModel(Protocol):
    """A model that is compiled for buckets and keeps keys and values in blocks."""

    @property
    def buckets(self) -> BucketTable:
        """The shapes that it serves."""

    @property
    def block_size(self) -> int:
        """Tokens per block."""

    @property
    def num_blocks(self) -> int:
        """All blocks of layers that see all tokens, the scratch blocks included."""

    @property
    def window(self) -> int | None:
        """Keys that a query sees in the layers that have a window; None: there are none."""

    @property
    def num_window_blocks(self) -> int:
        """All blocks of layers with a window, the scratch blocks included; 0: there are none."""

    @property
    def num_scratch_blocks(self) -> int:
        """Blocks 0..n-1 of each pool, whose slots take the writes of padding, ``buckets.num_scratch_slots`` or more."""

    @property
    def max_seq_len(self) -> int:
        """Most tokens of a sequence, prompt and answer together."""

    def inputs(self, bucket: Bucket) -> StepInputs:
        """The arrays that the next ``run(bucket)`` reads; the same object each time, filled in place."""

    def run(self, bucket: Bucket) -> StepOutput:
        """Execute the step that ``inputs(bucket)`` describes."""

    def explain_not_finite(self, bucket: Bucket, rows: Sequence[int]) -> list[Exception]:
        """For each of these rows of the last ``run(bucket)``, whose logits are not finite: the error of its request."""


def window_blocks(window: int, tokens: int, block_size: int, max_seq_len: int) -> int:
    """Most blocks that a sequence holds in layers with a window, while a step computes `tokens` of its tokens."""
    # The oldest key that the first of them sees may be the last token of its block.
    return min((window - 1 + tokens + block_size - 2) // block_size + 1, -(-max_seq_len // block_size))


def check_model(model: StepModel) -> None:
    """Raise ValueError if the model's numbers do not fit together."""
    buckets = model.buckets
    if model.num_scratch_blocks * model.block_size < buckets.num_scratch_slots:
        raise ValueError(
            f"{model.num_scratch_blocks} scratch blocks of {model.block_size} slots cannot take the padding of a step, "
            f"up to {buckets.num_scratch_slots} tokens"
        )
    if buckets.table_widths[-1] * model.block_size < model.max_seq_len:
        raise ValueError(
            f"a block table of {buckets.table_widths[-1]} blocks of {model.block_size} tokens does not hold "
            f"max_seq_len, {model.max_seq_len} tokens"
        )
    if model.window is not None:
        usable, tokens = model.num_window_blocks - model.num_scratch_blocks, buckets.chunk_lengths[-1]
        needed = window_blocks(model.window, tokens, model.block_size, model.max_seq_len)
        if usable < needed:
            raise ValueError(
                f"{usable} blocks of {model.block_size} tokens do not hold what a chunk of {tokens} tokens sees "
                f"through a window of {model.window}, {needed} blocks"
            )
    if not buckets.fits(1, buckets.chunk_lengths[0]):
        raise ValueError(f"no prefill step fits in {buckets.max_step_tokens} tokens")
