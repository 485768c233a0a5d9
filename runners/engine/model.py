"""StepModel: what the engine asks of a compiled model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput


class StepModel(Protocol):
    """A model that is compiled for buckets and keeps keys and values in blocks.

    buckets: the shapes it serves. block_size: tokens per block. num_blocks: all blocks, the scratch blocks included.
    num_scratch_blocks: blocks 0..n-1 are scratch, their slots take the writes of padding (at least
    ``buckets.num_scratch_slots`` slots). max_seq_len: most tokens of a sequence, prompt and answer together.
    """

    @property
    def buckets(self) -> BucketTable: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_scratch_blocks(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...

    def inputs(self, bucket: Bucket) -> StepInputs:
        """The arrays that the next ``run(bucket)`` reads; the same object each time, filled in place."""

    def run(self, bucket: Bucket) -> StepOutput:
        """Execute the step that ``inputs(bucket)`` describes."""

    def explain_not_finite(self, bucket: Bucket, rows: Sequence[int]) -> list[Exception]:
        """For each of these rows of the last ``run(bucket)``, whose logits are not finite: what to tell its request."""


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
