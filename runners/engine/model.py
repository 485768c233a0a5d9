"""StepModel: the interface of a compiled model that the engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput


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
        """All blocks, the scratch blocks included."""

    @property
    def num_scratch_blocks(self) -> int:
        """Blocks 0..n-1, whose slots take the writes of padding: at least ``buckets.num_scratch_slots`` slots."""

    @property
    def max_seq_len(self) -> int:
        """Most tokens of a sequence, prompt and answer together."""

    def inputs(self, bucket: Bucket) -> StepInputs:
        """The arrays that the next ``run(bucket)`` reads; the same object each time, filled in place."""

    def run(self, bucket: Bucket) -> StepOutput:
        """Execute the step that ``inputs(bucket)`` describes."""

    def explain_not_finite(self, bucket: Bucket, rows: Sequence[int]) -> list[Exception]:
        """For each of these rows of the last ``run(bucket)``, whose logits are not finite: the error of its request."""


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
    if not buckets.fits(1, buckets.chunk_lengths[0]):
        raise ValueError(f"no prefill step fits in {buckets.max_step_tokens} tokens")
