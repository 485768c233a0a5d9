"""A model that does nothing: to measure the host's time, and to list the steps that an engine runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput, make_inputs
from graph_gemma.runners.engine.model import StepModel

_TOKEN = 65


class NullModel:
    """A StepModel whose greedy and sampled steps take no time and always choose the same token."""

    def __init__(
        self,
        buckets: BucketTable,
        block_size: int,
        num_scratch_blocks: int,
        num_blocks: int,
        max_seq_len: int,
        window: int | None = None,
        num_window_blocks: int = 0,
    ) -> None:
        self.buckets = buckets
        self.block_size = block_size
        self.num_scratch_blocks = num_scratch_blocks
        self.num_blocks = num_blocks
        self.max_seq_len = max_seq_len
        self.window = window
        self.num_window_blocks = num_window_blocks
        self._inputs: dict[Bucket, StepInputs] = {}
        self._outputs: dict[Bucket, StepOutput] = {}

    @classmethod
    def like(cls, model: StepModel) -> NullModel:
        """With the buckets and blocks of `model`, so that an engine schedules the same steps."""
        return cls(
            model.buckets,
            model.block_size,
            model.num_scratch_blocks,
            model.num_blocks,
            model.max_seq_len,
            model.window,
            model.num_window_blocks,
        )

    @property
    def used(self) -> list[Bucket]:
        """Every bucket that an engine has run, in the order of the first runs."""
        return list(self._inputs)

    def inputs(self, bucket: Bucket) -> StepInputs:
        if bucket not in self._inputs:
            self._inputs[bucket] = make_inputs(bucket, self.window is not None)
            self._outputs[bucket] = StepOutput(np.full(bucket.batch, _TOKEN, np.int64))
        return self._inputs[bucket]

    def run(self, bucket: Bucket) -> StepOutput:
        return self._outputs[bucket]

    def explain_not_finite(self, bucket: Bucket, rows: Sequence[int]) -> list[Exception]:
        return []  # it has no logits
