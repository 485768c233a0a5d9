"""The Python API: generate and stream, refusals, interruption, and failures of single requests."""

from __future__ import annotations

import gc
import itertools

import pytest
from support.engine_drivers import PROMPTS, SAMPLING, TOKENIZER, Panic, expected, make_llm
from support.engine_fakes import FakeModel, assert_nothing_held, scripted, small_buckets

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine import Engine, EngineDriver, SamplingParams, TokenEvent


def test_generate_answers_in_the_order_of_the_prompts() -> None:
    llm = make_llm()
    settings = [SamplingParams(max_new_tokens=10 - index) for index in range(6)]
    results = llm.generate(PROMPTS, settings)
    for index, result in enumerate(results):
        assert result.prompt_token_ids == PROMPTS[index]
        assert result.token_ids == expected(index)[: 10 - index]
        assert result.text == TOKENIZER.decode(result.token_ids, skip_special_tokens=True).rstrip("\ufffd")
        assert result.ttft_s > 0
        assert result.decode_tokens_per_s > 0
    assert_nothing_held(llm.engine)


def test_prompts_are_texts_or_token_ids_one_or_many() -> None:
    llm = make_llm()
    text = "the cat"
    [alone] = llm.generate(text, SAMPLING)
    assert alone.prompt_token_ids == TOKENIZER.encode(text)
    [ids] = llm.generate(TOKENIZER.encode(text), SAMPLING)
    [listed, _] = llm.generate([text, "the dog"], SAMPLING)
    assert alone.token_ids == ids.token_ids == listed.token_ids
    assert llm.generate([], SAMPLING) == []


def test_events_come_with_the_index_of_their_prompt() -> None:
    streamed: dict[int, list[int]] = {}

    def on_event(index: int, event: TokenEvent) -> None:
        streamed.setdefault(index, []).append(event.token_id)

    make_llm().generate(PROMPTS, SAMPLING, on_event)
    assert streamed == {index: expected(index) for index in range(6)}


@pytest.mark.parametrize("fail_at", [1, 4, 10])
def test_a_callback_that_raises_fails_its_request_only(fail_at: int) -> None:
    counts = [0] * 6

    def on_event(index: int, event: TokenEvent) -> None:
        counts[index] += 1
        if index == 2 and counts[index] == fail_at:
            raise OSError("disk full")

    llm = make_llm()
    results = llm.generate(PROMPTS, SAMPLING, on_event)
    assert [result.finish_reason for result in results] == ["length"] * 2 + ["error"] + ["length"] * 3
    assert str(results[2].error) == "disk full"
    assert results[2].token_ids == expected(2)[:fail_at]
    for index in (0, 1, 3, 4, 5):
        assert results[index].token_ids == expected(index)
    assert_nothing_held(llm.engine)


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ValueError("no such token"), "no such token"), (Panic("out of bounds"), "Panic: out of bounds")],
)
def test_a_tokenizer_that_raises_fails_the_request_only(error: BaseException, shown: str) -> None:
    class FailingTokenizer:
        """Cannot decode token 66, nor encode."""

        def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
            if 66 in token_ids:
                raise error
            return "x" * len(token_ids)

        def encode(self, text: str) -> list[int]:
            raise error

    answers = {3: [65, 65, 65, 65], 4: [65, 66, 65, 65]}
    model = FakeModel(choose=lambda context: answers[context[0]][len(context) - 2])
    llm = EngineDriver(model, FailingTokenizer())
    good, bad = llm.generate([[3, 3], [4, 4]], SamplingParams(max_new_tokens=4))
    assert (good.finish_reason, good.text) == ("length", "xxxx")
    assert (bad.finish_reason, bad.text, str(bad.error)) == ("error", "x", shown)
    with pytest.raises(Exception, match=shown):
        llm.generate("a text")
    assert_nothing_held(llm.engine)


@pytest.mark.parametrize("closed_by", ["callback", "garbage collector"])
def test_a_stream_closed_inside_a_step_ends_with_the_next(closed_by: str) -> None:
    llm = make_llm()
    cycle: list[object] = [llm.stream(PROMPTS[1], SamplingParams(max_new_tokens=40))]
    cycle.append(cycle)
    next(cycle[0])  # type: ignore[call-overload]
    if closed_by == "garbage collector":
        del cycle

    def on_event(index: int, event: TokenEvent) -> None:
        if closed_by == "callback":
            cycle[0].close()  # type: ignore[attr-defined]
        else:
            gc.collect()

    gc.disable()
    try:
        (result,) = llm.generate(PROMPTS[2], SAMPLING, on_event)
    finally:
        gc.enable()
    assert result.token_ids == expected(2)
    assert_nothing_held(llm.engine)


def test_a_call_from_a_callback_is_refused() -> None:
    llm = make_llm()

    def on_event(index: int, event: TokenEvent) -> None:
        llm.generate(PROMPTS[3], SAMPLING)

    (result,) = llm.generate(PROMPTS[2], SAMPLING, on_event)
    assert result.finish_reason == "error"
    assert "while a step runs" in str(result.error)
    assert llm.generate(PROMPTS[3], SAMPLING)[0].token_ids == expected(3)
    assert_nothing_held(llm.engine)


def test_an_interruption_keeps_finished_work_and_the_engine() -> None:
    llm = make_llm()
    settings = [SamplingParams(max_new_tokens=2 if index < 2 else 30) for index in range(6)]
    finished: list[int] = []

    def on_event(index: int, event: TokenEvent) -> None:
        if event.result is not None and event.result.finish_reason != "abort":
            finished.append(index)

    def interrupt(step: int) -> None:
        if step == 20:
            raise KeyboardInterrupt

    llm.engine.model.before_run = interrupt  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, settings, on_event)
    assert finished == [0, 1]
    assert_nothing_held(llm.engine)
    llm.engine.model.before_run = None  # type: ignore[attr-defined]
    assert llm.generate(PROMPTS[3], SAMPLING)[0].token_ids == expected(3)


def test_nothing_runs_if_one_prompt_is_refused() -> None:
    llm = make_llm()
    with pytest.raises(UserError, match="empty"):
        llm.generate([[1, 2], []], SAMPLING)
    assert_nothing_held(llm.engine)
    assert llm.engine.model.steps == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], SAMPLING, "empty"),
        ([1] * 64, SAMPLING, "max_seq_len"),
        ([1, -2], SAMPLING, "token id -2"),
        ([1, 251], SAMPLING, "token id 251"),
        ([1, 2.5], SAMPLING, "integers"),
        ([1] * 30, SamplingParams(max_new_tokens=30), "num_blocks"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused(
    prompt: list[int], sampling: SamplingParams, message: str
) -> None:
    engine = Engine(FakeModel(usable_blocks=10), vocab_size=251)
    with pytest.raises(UserError, match=message):
        engine.add_request(prompt, sampling)
    assert not engine.has_unfinished()


def test_the_longest_request_that_fits_is_served() -> None:
    engine = Engine(FakeModel(usable_blocks=10))
    engine.add_request([1] * 30, SamplingParams(max_new_tokens=11))  # the last token needs no place
    with pytest.raises(UserError):
        engine.add_request([1] * 30, SamplingParams(max_new_tokens=12))
    results = []
    while engine.has_unfinished():
        results += [event.result for event in engine.step() if event.result]
    assert len(results[0].token_ids) == 11
    assert engine.statistics.peak_blocks == 10


def test_an_answer_ends_at_max_seq_len() -> None:
    [result] = make_llm(max_seq_len=20).generate([1] * 15, SamplingParams(max_new_tokens=100))
    assert (len(result.token_ids), result.finish_reason) == (5, "length")


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(UserError, match="stop"):
        EngineDriver(FakeModel()).generate([1, 2], SamplingParams(stop=("x",)))
    with pytest.raises(UserError, match="tokenizer"):
        EngineDriver(FakeModel()).generate("text", SAMPLING)


def test_a_model_whose_numbers_do_not_fit_together_is_refused() -> None:
    model = FakeModel()
    model.num_scratch_blocks = 0
    with pytest.raises(ValueError, match="scratch"):
        Engine(model)
    with pytest.raises(ValueError, match="max_seq_len"):
        Engine(FakeModel(small_buckets(width=4), max_seq_len=64))


def test_logprobs_are_cut_to_what_the_request_asked_for() -> None:
    llm = make_llm()
    results = llm.generate(PROMPTS[:3], [SamplingParams(logprobs=n, max_new_tokens=4) for n in (None, 0, 3)])
    assert results[0].logprobs is None
    assert [entry.top for entry in results[1].logprobs] == [[]] * 4
    assert [len(entry.top) for entry in results[2].logprobs] == [3] * 4
    for token, entry in zip(results[2].token_ids, results[2].logprobs, strict=True):
        assert entry.logprob == -token / 16
        assert entry.top[0] == (token, 0.0)


def test_a_closed_stream_aborts_its_request() -> None:
    llm = make_llm()
    stream = llm.stream(PROMPTS[1], SAMPLING)
    assert [event.token_id for event in itertools.islice(stream, 3)] == expected(1)[:3]
    stream.close()
    assert_nothing_held(llm.engine)


def test_generate_works_while_a_stream_is_open() -> None:
    llm = make_llm()
    tokens = []
    for event in llm.stream(PROMPTS[1], SAMPLING):
        tokens.append(event.token_id)
        if len(tokens) == 3:
            assert llm.generate(PROMPTS[2], SAMPLING)[0].token_ids == expected(2)
    assert tokens == expected(1)


def test_statistics_count_tokens_steps_and_seconds() -> None:
    llm = make_llm(choose=scripted(4, [9] * 20))
    llm.generate([[1, 2, 3, 4], [5, 6, 7, 8]], SamplingParams(max_new_tokens=5))
    statistics = llm.engine.statistics
    assert (statistics.prefill_tokens, statistics.decode_tokens) == (8, 8)
    assert statistics.decode_s > statistics.decode_host_s > 0
    assert statistics.host_us_per_decode_step == pytest.approx(statistics.decode_host_s / statistics.decode_steps * 1e6)
    assert statistics.peak_blocks == 4
    statistics.reset()
    assert statistics.decode_tokens == 0
