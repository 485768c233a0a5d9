"""Any mixture of requests: each gets what it would get alone, nothing is lost, nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.arrivals import Request, serve
from support.engine_fakes import FakeModel, assert_nothing_held, expected_tokens, small_buckets

from graph_gemma.runners.engine import Engine, SamplingParams
from graph_gemma.runners.engine.model import window_blocks

MAX_SEQ_LEN = 40
EOS = (3, 5)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    # Few beginnings, so that prompts share blocks, or differ after shared blocks.
    beginning = [[7] * 9, list(range(20, 33)), []][draw(st.integers(0, 2))][: draw(st.integers(0, 13))]
    ending = draw(st.lists(st.integers(0, 9), min_size=1, max_size=14))
    sampling = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.0, 0.7])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.5])),
        seed=draw(st.integers(0, 3)),
        max_new_tokens=draw(st.integers(1, 24)),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, None, 0, 3])),
    )
    abort_after = draw(st.one_of(st.none(), st.none(), st.integers(0, 20)))
    return Request(draw(st.integers(0, 25)), beginning + ending, sampling, abort_after)


mixtures = st.tuples(
    st.lists(requests(), min_size=1, max_size=14),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 8),
    st.sampled_from([1, 2, 4, 5]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([2, 8, 16]),
    st.sampled_from([None, 2, 3, 8, 9, 21]),
    st.integers(0, 6),
)


@settings(max_examples=80, deadline=None)
@given(mixtures)
def test_each_request_gets_the_tokens_it_gets_alone(mixture: tuple[Any, ...]) -> None:
    serve_and_check(*mixture)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(mixtures)
def test_each_request_gets_its_lone_tokens_in_many_mixtures(mixture: tuple[Any, ...]) -> None:
    serve_and_check(*mixture)


def serve_and_check(
    batch: list[Request],
    block_size: int,
    spare: int,
    decode_rows: int,
    prefill_rows: int,
    chunk: int,
    window: int | None,
    window_spare: int,
) -> None:
    # The pools hold one longest request and little more, so that sequences are preempted all the time.
    usable = -(-MAX_SEQ_LEN // block_size) + spare
    buckets = small_buckets(decode_rows, prefill_rows, chunk, width=-(-MAX_SEQ_LEN // block_size))
    in_window = window_blocks(window or 1, chunk, block_size, MAX_SEQ_LEN) + window_spare
    model = FakeModel(buckets, block_size, usable, MAX_SEQ_LEN, window=window, usable_window_blocks=in_window)
    engine = Engine(model, eos_token_ids=EOS)
    model.blocks = engine.blocks
    answers = serve(engine, batch, most_steps=5000)
    oldest = min(range(len(batch)), key=lambda place: batch[place].arrival)
    assert answers[oldest].result.num_preemptions == 0, "the oldest is never preempted"
    for request, answer in zip(batch, answers, strict=True):
        result = answer.result
        expected = expected_tokens(request.prompt, request.sampling, MAX_SEQ_LEN, EOS)
        assert result.token_ids == answer.told
        if result.finish_reason == "abort":
            assert request.abort_after is not None
            expected = expected[: len(result.token_ids)]
        elif expected[-1] in EOS and not request.sampling.ignore_eos:
            assert result.finish_reason == "stop"
        else:
            assert result.finish_reason == "length"
        assert result.token_ids == expected
        assert result.prompt_token_ids == request.prompt
        if request.sampling.logprobs is not None:
            assert [entry.logprob for entry in result.logprobs] == [-token / 16 for token in expected]
            count = request.sampling.logprobs
            assert [entry.top for entry in result.logprobs] == [
                [(token + rank, -float(rank)) for rank in range(count)] for token in expected
            ]


def test_a_request_aborted_at_any_step_leaves_the_others_alone() -> None:
    prompts = [list(range(base, base + 11)) for base in (0, 40, 80)]
    sampling = SamplingParams(max_new_tokens=12, ignore_eos=True)
    for abort_step in range(40):
        model = FakeModel(usable_blocks=12, max_seq_len=32)
        engine = Engine(model)
        model.blocks = engine.blocks
        ids = [engine.add_request(prompt, sampling) for prompt in prompts]
        results = {}
        for step in range(200):
            if step == abort_step:
                engine.abort(ids[1])
                engine.abort(ids[1])
            results.update({event.request_id: event.result for event in engine.step() if event.result})
            if not engine.has_unfinished():
                break
        assert_nothing_held(engine)
        for request_id, prompt in zip(ids, prompts, strict=True):
            expected = expected_tokens(prompt, sampling, 32)
            result = results[request_id]
            assert result.token_ids == expected[: len(result.token_ids)]
            if result.finish_reason != "abort":
                assert len(result.token_ids) == len(expected)
            else:
                assert request_id == ids[1]


def test_no_token_comes_after_abort_returns() -> None:
    """Abort from within a callback, of a request whose row comes later in the same step."""
    engine = Engine(FakeModel())
    other: list[int] = []
    late: list[int | None] = []

    def abort_other(event: object) -> None:
        engine.abort(other[0])

    engine.add_request([1, 2, 3], SamplingParams(max_new_tokens=5), abort_other)
    other.append(
        engine.add_request([4, 5, 6], SamplingParams(max_new_tokens=5), lambda event: late.append(event.token_id))
    )
    while engine.has_unfinished():
        engine.step()
    assert late == [None]


def test_a_step_that_the_model_fails_can_be_tried_again() -> None:
    model = FakeModel(usable_blocks=12, max_seq_len=32)
    engine = Engine(model)
    model.blocks = engine.blocks
    failures = iter([True, False] * 500)

    def fail_every_other_time(_: int) -> None:
        if next(failures):
            raise RuntimeError("device lost")

    model.before_run = fail_every_other_time
    sampling = SamplingParams(max_new_tokens=12)
    prompts = [[base] * 10 for base in range(4)]
    ids = [engine.add_request(prompt, sampling) for prompt in prompts]
    results = {}
    while engine.has_unfinished():
        try:
            events = engine.step()
        except RuntimeError:
            continue
        results.update({event.request_id: event.result for event in events if event.result})
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert results[request_id].token_ids == expected_tokens(prompt, sampling, 32)
    assert_nothing_held(engine)


@pytest.mark.parametrize("after_the_token", [False, True])
def test_an_interruption_while_tokens_are_taken_corrupts_nothing(
    after_the_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at any token: its request ends, the others get the tokens that they get alone."""
    prompts = [list(range(base, base + 11)) for base in (0, 40, 80)]
    sampling = SamplingParams(temperature=0.7, seed=3, max_new_tokens=7, ignore_eos=True)
    take_token = Engine._take_token
    for place in range(3 * 7):
        model = FakeModel(usable_blocks=12, max_seq_len=32)
        engine = Engine(model)
        model.blocks = engine.blocks
        calls, was_its_last = 0, False

        def interrupted(self: Engine, *arguments: Any, place: int = place) -> None:
            nonlocal calls, was_its_last
            calls += 1
            if calls == place + 1 and not after_the_token:
                raise KeyboardInterrupt
            take_token(self, *arguments)
            if calls == place + 1:
                was_its_last = arguments[1].result is not None
                raise KeyboardInterrupt

        monkeypatch.setattr(Engine, "_take_token", interrupted)
        ids = [engine.add_request(prompt, sampling) for prompt in prompts]
        received: dict[int, list[int]] = {request_id: [] for request_id in ids}
        results = {}
        interruptions = 0
        while engine.has_unfinished():
            try:
                events = engine.step()
            except KeyboardInterrupt:
                interruptions += 1
                continue
            for event in events:
                if event.token_id is not None:
                    received[event.request_id].append(event.token_id)
                if event.result is not None:
                    results[event.request_id] = event.result
        assert interruptions == 1
        assert_nothing_held(engine)
        aborted = [request_id for request_id in ids if results[request_id].finish_reason == "abort"]
        assert len(aborted) == (0 if was_its_last else 1)
        for request_id, prompt in zip(ids, prompts, strict=True):
            expected = expected_tokens(prompt, sampling, 32)
            if request_id in aborted:
                expected = expected[: len(received[request_id])]
            assert received[request_id] == results[request_id].token_ids == expected
