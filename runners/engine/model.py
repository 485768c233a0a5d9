"""StepModel: what the engine asks of a compiled model."""

from __future__ import annotations

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
