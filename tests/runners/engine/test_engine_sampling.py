"""Settings are checked, and random numbers depend on seed and position only."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine_fakes import FakeModel

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine import Engine, SamplingParams
from graph_gemma.runners.engine.uniforms import CHUNK, uniform_chunk


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("max_new_tokens", 0),
        ("logprobs", -1),
        ("logprobs", 21),
        ("ignore_eos", 1),
        ("stop", [""]),
        ("stop", ["a", 3]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name) as raised:
        SamplingParams(**{name: value})
    assert repr(value if name != "stop" else value[-1]) in str(raised.value)


def test_a_number_of_thousands_of_digits_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="seed is an integer of about 5001 digits"):
        SamplingParams(seed=10**5000)


def test_values_at_the_edge_of_the_range_are_taken() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1, seed=2**64 - 1, max_new_tokens=1, logprobs=20)
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_a_number_is_the_word_at_its_place_in_a_seeds_stream(seed: int, index: int) -> None:
    words = np.random.Philox(key=seed).advance(index * CHUNK // 4).random_raw(CHUNK)
    numbers = uniform_chunk(seed, index)
    assert numbers.dtype == np.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert (numbers.astype(np.float64) == (words // 2**40) / 2**24).all()


def test_numbers_are_uniform_and_seeds_differ() -> None:
    numbers = np.concatenate([uniform_chunk(seed, index) for seed in range(20) for index in range(20)])
    counts, _ = np.histogram(numbers, bins=64, range=(0, 1))
    chi_square = ((counts - len(numbers) / 64) ** 2 / (len(numbers) / 64)).sum()
    assert chi_square < 117  # 63 degrees of freedom, p = 5e-5
    assert len({uniform_chunk(seed, 0).tobytes() for seed in range(100)}) == 100


class RecordingModel(FakeModel):
    """Keeps (position, uniform) of every sampled row."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.uniforms: set[tuple[int, int, float]] = set()

    def run(self, bucket):  # type: ignore[no-untyped-def]
        inputs = self._inputs[bucket]
        if inputs.temperature is not None:
            for row in np.flatnonzero(inputs.temperature > 0):
                length = inputs.query_lens[row] if inputs.context_lens is None else inputs.context_lens[row]
                # top_k serves as the request's name.
                self.uniforms.add((int(inputs.top_k[row]), int(length), float(inputs.uniform[row])))
        return super().run(bucket)


def drawn(requests: list[tuple[list[int], int]], **model: object) -> set[tuple[int, int, float]]:
    fake = RecordingModel(max_seq_len=200, **model)
    engine = Engine(fake)
    for prompt, seed in requests:
        engine.add_request(
            prompt, SamplingParams(temperature=1.0, top_k=len(prompt), seed=seed, max_new_tokens=100, ignore_eos=True)
        )
    while engine.has_unfinished():
        engine.step()
    return fake.uniforms


def test_uniforms_do_not_depend_on_batch_or_preemption() -> None:
    requests = [([1] * length, length) for length in (5, 6, 7, 8, 9)]
    alone = set().union(*(drawn([request], block_size=16) for request in requests))
    assert len(alone) == 5 * 100
    assert drawn(requests, block_size=16) == alone
    assert drawn(requests, block_size=16, usable_blocks=14) == alone  # room for two of the five


def test_requests_of_one_seed_draw_the_same_number_at_a_position() -> None:
    numbers: dict[int, set[float]] = {}
    for _, position, number in drawn([([1] * 5, 3), ([2] * 9, 3)], block_size=16):
        numbers.setdefault(position, set()).add(number)
    assert all(len(values) == 1 for values in numbers.values())


def test_a_request_without_a_seed_gets_a_fresh_one_and_tells_it() -> None:
    sampling = SamplingParams(temperature=1.0, max_new_tokens=8)
    results = []
    engine = Engine(FakeModel())
    for _ in range(2):
        engine.add_request([1, 2], sampling)
    while engine.has_unfinished():
        results += [event.result for event in engine.step() if event.result]
    assert results[0].seed != results[1].seed
    engine.add_request([1, 2], SamplingParams(temperature=1.0, max_new_tokens=8, seed=results[0].seed))
    while engine.has_unfinished():
        results += [event.result for event in engine.step() if event.result]
    assert results[2].token_ids == results[0].token_ids != results[1].token_ids
