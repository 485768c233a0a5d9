"""What runs when: chunks, alternation, prefix sharing, preemption, and a decode batch that stays full."""

from __future__ import annotations

import numpy as np
import pytest
from support.engine_fakes import FakeModel, assert_nothing_held, expected_tokens, small_buckets

from graph_gemma.graph_model.bucket import BucketTable, powers_of_two
from graph_gemma.runners.engine import Engine, RequestResult, SamplingParams


def finish(engine: Engine) -> dict[int, RequestResult]:
    results = {}
    for _ in range(2000):
        results.update({event.request_id: event.result for event in engine.step() if event.result})
        if not engine.has_unfinished():
            return results
    raise AssertionError("the requests come to no end")


def phases(model: FakeModel) -> list[str]:
    return [bucket.phase for bucket, _, _ in model.steps]


def large_buckets(batch: int) -> BucketTable:
    return BucketTable(
        batch_sizes=powers_of_two(1, batch),
        prefill_batch_sizes=(1, 2, 4),
        chunk_lengths=powers_of_two(16, 512),
        table_widths=powers_of_two(4, 32),
        max_step_tokens=1024,
    )


def test_a_fresh_prompt_is_a_prefill_and_its_later_chunks_extend() -> None:
    model = FakeModel(small_buckets(chunk=8))
    engine = Engine(model)
    engine.add_request(range(20), SamplingParams(max_new_tokens=3))
    finish(engine)
    assert [str(bucket) for bucket, _, _ in model.steps] == [
        "prefill-b1-t8",
        "extend-b1-t8-w4",
        "extend-b1-t4-w8",
        "decode-b1-w8",
        "decode-b1-w8",
    ]


@pytest.mark.parametrize("block_size", [4, 16])
def test_chunks_may_end_inside_a_block(block_size: int) -> None:
    model = FakeModel(small_buckets(chunk=6, width=16), block_size=block_size)
    engine = Engine(model)
    prompt, sampling = list(range(29)), SamplingParams(max_new_tokens=9)
    engine.add_request(prompt, sampling)
    assert finish(engine)[0].token_ids == expected_tokens(prompt, sampling, 64)
    assert [tokens for bucket, _, tokens in model.steps if bucket.phase != "decode"] == [6, 6, 6, 6, 5]


def test_prompts_and_decoding_take_turns() -> None:
    """A long prompt neither stops those that decode nor waits for their end."""
    model = FakeModel(small_buckets(chunk=4))
    engine = Engine(model)
    engine.add_request([1, 2], SamplingParams(max_new_tokens=40))
    engine.step()
    engine.add_request(range(30), SamplingParams(max_new_tokens=2))
    before = len(model.steps)
    finish(engine)
    assert phases(model)[before : before + 16] == ["decode", "prefill"] + ["decode", "extend"] * 7


def test_a_shared_prefix_is_computed_once() -> None:
    """16 requests that arrive together and share 512 tokens: their prefill costs 512 tokens and each one's own end."""
    model = FakeModel(large_buckets(16), block_size=64, usable_blocks=400, max_seq_len=2048)
    engine = Engine(model)
    model.blocks = engine.blocks
    prefix = np.random.default_rng(0).integers(0, 250, 512).tolist()
    prompts = [[*prefix, *[index] * 10] for index in range(16)]
    sampling = SamplingParams(max_new_tokens=4)
    for prompt in prompts:
        engine.add_request(prompt, sampling)
    results = finish(engine)
    assert [results[i].token_ids for i in range(16)] == [expected_tokens(prompt, sampling, 2048) for prompt in prompts]
    assert engine.statistics.prefill_tokens == 512 + 16 * 10
    assert sum(tokens for bucket, _, tokens in model.steps if bucket.phase != "decode") == 512 + 16 * 10
    assert engine.statistics.cached_prompt_tokens == 15 * 512
    assert engine.statistics.prompt_tokens == 16 * 522
    assert [results[i].num_cached_tokens for i in range(16)] == [0] + [512] * 15
    assert_nothing_held(engine)


def test_an_earlier_answer_is_a_prefix_of_the_next_turn() -> None:
    model = FakeModel()
    engine = Engine(model)
    prompt = list(range(10))
    engine.add_request(prompt, SamplingParams(max_new_tokens=11))
    answer = finish(engine)[0].token_ids
    engine.add_request([*prompt, *answer, 1, 2], SamplingParams(max_new_tokens=1))
    assert finish(engine)[1].num_cached_tokens == 20  # the last token of an answer is not in the cache


def test_the_youngest_is_preempted_and_loses_nothing() -> None:
    model = FakeModel(small_buckets(batch=3, prefill_batch=2), usable_blocks=10, max_seq_len=32)
    engine = Engine(model)
    model.blocks = engine.blocks
    prompts = [[base] * 6 for base in (1, 2, 3)]
    sampling = SamplingParams(max_new_tokens=20)
    for prompt in prompts:
        engine.add_request(prompt, sampling)
    results = finish(engine)
    assert engine.statistics.preemptions > 0
    assert results[0].num_preemptions == 0, "the oldest is never preempted"
    assert sum(result.num_preemptions for result in results.values()) == engine.statistics.preemptions
    assert [results[i].token_ids for i in range(3)] == [expected_tokens(prompt, sampling, 32) for prompt in prompts]
    assert engine.statistics.peak_blocks <= 10
    assert_nothing_held(engine)


def test_a_request_that_waits_for_blocks_runs_later() -> None:
    model = FakeModel(usable_blocks=8, max_seq_len=32)
    engine = Engine(model)
    prompts = [[base] * 27 for base in (1, 2)]  # 7 blocks each
    sampling = SamplingParams(max_new_tokens=4)
    for prompt in prompts:
        engine.add_request(prompt, sampling)
    results = finish(engine)
    assert engine.statistics.preemptions == 0
    assert {bucket.batch for bucket, _, _ in model.steps} == {1}
    assert [results[i].token_ids for i in range(2)] == [expected_tokens(prompt, sampling, 32) for prompt in prompts]


def test_a_newcomer_leaves_those_that_run_a_block_to_grow_into() -> None:
    engine = Engine(FakeModel(usable_blocks=8, max_seq_len=32))
    engine.add_request([1] * 14, SamplingParams(max_new_tokens=10))  # 4 blocks at first, 6 at last
    engine.add_request([2] * 15, SamplingParams(max_new_tokens=8))  # 4 blocks
    finish(engine)
    assert engine.statistics.preemptions == 0


def test_a_prompt_being_computed_gives_way_to_those_older() -> None:
    model = FakeModel(small_buckets(batch=2, chunk=4, width=32), block_size=2, usable_blocks=24)
    engine = Engine(model)
    first = engine.add_request([1] * 4, SamplingParams(max_new_tokens=30))
    engine.step()
    engine.add_request([2] * 40, SamplingParams(max_new_tokens=1))
    for _ in range(10):
        engine.step()
    assert engine.statistics.preemptions == 1
    assert not engine.scheduler.prefilling
    assert [sequence.request_id for sequence in engine.scheduler.decoding] == [first]
    finish(engine)


def test_only_prompts_of_like_length_share_a_step() -> None:
    model = FakeModel(large_buckets(8), block_size=16, usable_blocks=400, max_seq_len=512)
    engine = Engine(model)
    for index in range(4):
        engine.add_request([index] * 100, SamplingParams(max_new_tokens=1))
    engine.add_request([8] * 20, SamplingParams(max_new_tokens=1))
    engine.add_request([9] * 400, SamplingParams(max_new_tokens=1))
    finish(engine)
    assert [(rows, tokens) for _, rows, tokens in model.steps] == [(4, 400), (1, 20), (1, 400)]


def test_sampling_and_logprobs_buckets_run_when_a_row_asks() -> None:
    model = FakeModel()
    engine = Engine(model)
    engine.add_request([1, 2, 3], SamplingParams(max_new_tokens=8))
    engine.add_request([4, 5, 6], SamplingParams(max_new_tokens=4, temperature=1.0, seed=0))
    engine.add_request([7, 8, 9], SamplingParams(max_new_tokens=3, logprobs=2))
    engine.add_request([7, 8, 9], SamplingParams(max_new_tokens=2, logprobs=5))
    finish(engine)
    for bucket, rows, _ in model.steps:
        if rows == 4:
            assert (bucket.selection, bucket.logprobs) == ("sample", 5)
    assert (model.steps[-1][0].selection, model.steps[-1][0].logprobs) == ("greedy", -1)


def test_a_chunk_that_chooses_no_token_needs_no_sampling() -> None:
    model = FakeModel(small_buckets(chunk=8))
    engine = Engine(model)
    engine.add_request(range(20), SamplingParams(max_new_tokens=2, temperature=1.0, seed=0, logprobs=1))
    finish(engine)
    assert [bucket.selection for bucket, _, _ in model.steps] == ["greedy", "greedy", "sample", "sample"]
    assert [bucket.logprobs for bucket, _, _ in model.steps] == [-1, -1, 1, 1]


@pytest.mark.parametrize("batch", [8, 32, pytest.param(64, marks=pytest.mark.slow)])
def test_the_decode_batch_stays_full_while_work_waits(batch: int) -> None:
    """Prompts of 16 to 1,000 tokens, answers of 16 to 256, arriving at random and faster than they are served."""
    rng = np.random.default_rng(batch)
    model = FakeModel(large_buckets(batch), block_size=64, usable_blocks=40 * batch, max_seq_len=2048)
    model.choose = lambda context: len(context) % 250
    engine = Engine(model)
    todo = [
        (rng.integers(0, 250, rng.integers(16, 1001)).tolist(), int(rng.integers(16, 257))) for _ in range(8 * batch)
    ]
    full = decode_steps = 0
    while todo or engine.has_unfinished():
        for _ in range(min(rng.poisson(batch / 80), len(todo))):
            prompt, length = todo.pop()
            engine.add_request(prompt, SamplingParams(max_new_tokens=length))
        engine.step()
        if engine.scheduler.waiting and model.steps[-1][0].phase == "decode":
            decode_steps += 1
            full += model.steps[-1][1] == batch
    assert decode_steps > 500
    assert full / decode_steps >= 0.9
    assert_nothing_held(engine)


def test_a_request_that_arrives_in_decode_soon_gets_a_token() -> None:
    """The place ahead of the decode batch is also for those that come late."""
    model = FakeModel(small_buckets(batch=2, prefill_batch=2))
    engine = Engine(model)
    for base in range(2):
        engine.add_request([base] * 4, SamplingParams(max_new_tokens=50))
    for _ in range(6):
        engine.step()
    late = engine.add_request([9] * 4, SamplingParams(max_new_tokens=3))
    events = [event for _ in range(3) for event in engine.step()]
    assert late in {event.request_id for event in events}
    finish(engine)
