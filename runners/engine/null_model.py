"""A model that does nothing: to measure the host's time, and to list the steps that an engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput, make_inputs
from graph_gemma.runners.engine.model import StepModel

_TOKEN = 65


@dataclass
class NullModel:
    """A StepModel whose greedy and sampled steps take no time and always choose the same token."""

    buckets: BucketTable
    block_size: int
    num_scratch_blocks: int
    num_blocks: int
    max_seq_len: int
    window: int | None = None
    num_window_blocks: int = 0
    _inputs: dict[Bucket, StepInputs] = field(default_factory=dict, init=False)
    _outputs: dict[Bucket, StepOutput] = field(default_factory=dict, init=False)

    @classmethod
    def like(cls, model: StepModel) -> NullModel:
        """With the buckets and blocks of `model`, so that an engine schedules the same steps."""
        return cls(**{each.name: getattr(model, each.name) for each in fields(cls) if each.init})

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
