"""Warm-up covers every bucket that a run can come to, and not many more."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput, make_inputs, powers_of_two
from graph_model.compile import num_scratch_blocks
from runners.engine.llm import LLM
from runners.engine.sampling_params import SamplingParams
from runners.warm_up import reachable_buckets


class RecordingModel:
    """A StepModel that computes nothing and remembers which buckets were run."""

    def __init__(self, buckets: BucketTable, block_size: int, num_blocks: int, max_seq_len: int) -> None:
        self.buckets = buckets
        self.block_size = block_size
        self.num_scratch_blocks = num_scratch_blocks(buckets, block_size)
        self.num_blocks = self.num_scratch_blocks + num_blocks
        self.max_seq_len = max_seq_len
        self.seen: set[Bucket] = set()
        self._inputs: dict[Bucket, StepInputs] = {}

    def inputs(self, bucket: Bucket) -> StepInputs:
        self.seen.add(bucket)
        return self._inputs.setdefault(bucket, make_inputs(bucket))

    def run(self, bucket: Bucket) -> StepOutput:
        # Token 1 ends a sequence; which rows end when differs from step to step.
        tokens = np.arange(bucket.batch) + len(self.seen) + int(self._inputs[bucket].positions.sum())
        return StepOutput(np.where(tokens % 7 == 0, 1, 2).astype(np.int64))


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=9),
    max_new_tokens=st.integers(1, 80),
    spare_blocks=st.integers(0, 12),
    shared=st.integers(0, 60),
    sample=st.booleans(),
)
def test_a_run_reaches_no_other_bucket_than_those_warmed_up(
    lengths: list[int], max_new_tokens: int, spare_blocks: int, shared: int, sample: bool
) -> None:
    table = BucketTable((1, 4), (1, 3), powers_of_two(16, 64), powers_of_two(4, 16), 64)
    model = RecordingModel(table, 16, 16 + spare_blocks, 256)
    prompts = [[3] * min(shared, n) + [4 + i] * (n - min(shared, n)) for i, n in enumerate(lengths)]
    sampling = SamplingParams(temperature=float(sample), max_new_tokens=max_new_tokens)
    LLM(model, eos_token_ids=[1]).generate(prompts, sampling)
    assert model.seen <= set(reachable_buckets(model, prompts, max_new_tokens, sample))


def test_short_prompts_that_share_nothing_need_no_extend_bucket() -> None:
    model = RecordingModel(BucketTable((1, 4), (1, 4), (64, 128), (4, 8), 512), 64, 64, 512)
    prompts = [[5, 6, 7], [5, 8], [9] * 70]
    assert [str(bucket) for bucket in reachable_buckets(model, prompts, 100, sample=False)] == [
        "prefill-b1-t64",
        "prefill-b1-t128",
        "prefill-b4-t64",
        "prefill-b4-t128",
        "decode-b1-w4",
        "decode-b4-w4",
    ]


def test_one_prompt_needs_one_prefill_bucket() -> None:
    model = RecordingModel(BucketTable((1, 4), (1, 4), (64, 128), (4, 8), 512), 64, 64, 512)
    assert [str(bucket) for bucket in reachable_buckets(model, [[9] * 70], 100, sample=True)] == [
        "prefill-b1-t128-sample",
        "decode-b1-w4-sample",
    ]
