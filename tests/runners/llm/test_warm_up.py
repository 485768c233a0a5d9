"""Warm-up covers every bucket that a run can come to, and not many more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepOutput, powers_of_two
from graph_gemma.runners.compile import num_scratch_blocks
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.model import window_blocks
from graph_gemma.runners.engine.null_model import NullModel
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm.warm_up import reachable_buckets


class RecordingModel(NullModel):
    """A StepModel that computes nothing, remembers which buckets were run, and ends sequences at different steps."""

    @property
    def seen(self) -> set[Bucket]:
        return set(self.used)

    def run(self, bucket: Bucket) -> StepOutput:
        # Token 1 ends a sequence; which rows end when differs from step to step.
        rows = bucket.batch
        tokens = np.arange(rows) + len(self.seen) + int(self._inputs[bucket].positions.sum())
        output = StepOutput(np.where(tokens % 7 == 0, 1, 2).astype(np.int64))
        if bucket.logprobs < 0:
            return output
        top = np.zeros((rows, bucket.logprobs))
        return replace(output, logprob=np.zeros(rows), top_ids=top.astype(np.int64), top_logprobs=top)


def recording(
    buckets: BucketTable,
    block_size: int,
    num_blocks: int,
    max_seq_len: int,
    window: int | None = None,
    num_window_blocks: int = 0,
) -> RecordingModel:
    """With so many blocks to use in each pool."""
    scratch = num_scratch_blocks(buckets, block_size)
    in_windows = scratch + num_window_blocks
    return RecordingModel(buckets, block_size, scratch, scratch + num_blocks, max_seq_len, window, in_windows)


requests = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    max_new_tokens=st.integers(1, 80),
    logprobs=st.sampled_from([None, None, 0, 3]),
)
GREEDY, SAMPLE = SamplingParams(max_new_tokens=100), SamplingParams(temperature=1.0, max_new_tokens=100)
TABLE = BucketTable((1, 4), (1, 3), powers_of_two(16, 64), powers_of_two(4, 16), 64)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=9),
    spare_blocks=st.integers(0, 12),
    shared=st.integers(0, 60),
    sampling=st.one_of(requests, st.lists(requests, min_size=9, max_size=9)),
    times=st.integers(1, 3),
    window=st.sampled_from([None, 16, 33]),
    spare_window_blocks=st.integers(0, 40),
)
def test_a_run_reaches_no_other_bucket_than_those_warmed_up(
    lengths: list[int],
    spare_blocks: int,
    shared: int,
    sampling: SamplingParams | list[SamplingParams],
    times: int,
    window: int | None,
    spare_window_blocks: int,
) -> None:
    in_window = window_blocks(window or 1, TABLE.chunk_lengths[-1], 16, 256) + spare_window_blocks
    model = recording(TABLE, 16, 16 + spare_blocks, 256, window, in_window)
    prompts = [[3] * min(shared, n) + [4 + i] * (n - min(shared, n)) for i, n in enumerate(lengths)]
    if isinstance(sampling, list):
        sampling = sampling[: len(prompts)]
    llm = EngineDriver(model, eos_token_ids=[1])
    for _ in range(times):
        llm.generate(prompts, sampling)
    warm = set(reachable_buckets(model, prompts, sampling, once=times == 1))
    assert model.seen <= warm
    everything = set(reachable_buckets(model, None, sampling))
    assert warm <= everything, "a server is ready for these prompts as well"


def test_short_prompts_that_share_nothing_need_no_extend_bucket() -> None:
    model = recording(BucketTable((1, 4), (1, 4), (64, 128), (4, 8), 512), 64, 64, 512)
    prompts = [[5, 6, 7], [5, 8], [9] * 70]
    assert [str(bucket) for bucket in reachable_buckets(model, prompts, GREEDY, once=True)] == [
        "prefill-b1-t64",
        "prefill-b1-t128",
        "prefill-b4-t64",
        "prefill-b4-t128",
        "decode-b1-w4",
        "decode-b4-w4",
    ]


def test_one_prompt_needs_one_prefill_bucket() -> None:
    model = recording(BucketTable((1, 4), (1, 4), (64, 128), (4, 8), 512), 64, 64, 512)
    assert [str(bucket) for bucket in reachable_buckets(model, [[9] * 70], SAMPLE, once=True)] == [
        "prefill-b1-t128-sample",
        "decode-b1-w4-sample",
    ]


def test_a_prompt_that_comes_again_needs_steps_for_cached_ones() -> None:
    model = recording(BucketTable((1, 4), (1, 4), (64, 128), (4, 8), 512), 64, 64, 512)
    assert [str(bucket) for bucket in reachable_buckets(model, [[9] * 70], GREEDY)] == [
        "prefill-b1-t64",
        "prefill-b1-t128",
        "extend-b1-t64-w4",
        "extend-b1-t128-w4",
        "decode-b1-w4",
    ]


def test_a_step_returns_the_most_logprobs_that_a_row_asks_for() -> None:
    model = recording(BucketTable((1, 4), (1,), (64,), (4,), 64), 64, 64, 256)
    mixture = [
        SamplingParams(logprobs=2, max_new_tokens=9),
        SamplingParams(temperature=1.0, logprobs=0, max_new_tokens=9),
        SamplingParams(max_new_tokens=9),
    ]
    decode = [b for b in reachable_buckets(model, [[5], [6], [7]], mixture, once=True) if b.phase == "decode"]
    assert {(b.selection, b.logprobs) for b in decode} == {
        ("greedy", -1),
        ("greedy", 2),
        ("sample", 0),
        ("sample", 2),
    }
