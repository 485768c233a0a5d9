"""Any mixture of requests on a real model in float32: each gets the answer that it gets alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from engine_fakes import assert_nothing_held, byte_level_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.models import build_model

from graph_model.backends.eager import EagerBackend
from graph_model.bucket import BucketTable
from graph_model.compile import CompiledModel
from runners.engine import Engine, RequestResult, SamplingParams

CONFIG = replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1)
TOKENIZER = byte_level_tokenizer()  # of more tokens than the model, so that all of the model's have a text
MAX_SEQ_LEN, BLOCK_SIZE, NUM_BLOCKS = 64, 16, 9
EOS = (1, 40, 90)


@cache
def model() -> CompiledModel:
    buckets = BucketTable((1, 4), (1, 2), (8, 24), (4,), 48)
    backend = EagerBackend(torch.device("cpu"))
    return build_model(
        backend,
        make_model(CONFIG),
        CONFIG,
        buckets,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_seq_len=MAX_SEQ_LEN,
    )


def engine() -> Engine:
    return Engine(model(), TOKENIZER, EOS, CONFIG.vocab_size)


@dataclass
class Request:
    arrival: int
    prompt: list[int]
    sampling: SamplingParams
    abort_after: int | None  # steps after its arrival


@st.composite
def requests(draw: st.DrawFn) -> Request:
    # Few beginnings, longer than a block, so that prompts share blocks.
    beginning = [[7] * 20, list(range(20, 55)), []][draw(st.integers(0, 2))][: draw(st.integers(0, 35))]
    ending = draw(st.lists(st.integers(2, 255), min_size=1, max_size=6))
    sampling = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.0, 1.0])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.5])),
        seed=draw(st.integers(0, 3)),
        max_new_tokens=draw(st.integers(1, 30)),
        ignore_eos=draw(st.booleans()),
        stop=draw(st.sampled_from([(), (), ("e",), ("th", "a"), (" ", "0")])),
    )
    return Request(draw(st.integers(0, 25)), beginning + ending, sampling, draw(st.sampled_from([None, None, 2, 12])))


@settings(max_examples=15, deadline=None)
@given(st.lists(requests(), min_size=3, max_size=10))
def test_each_request_gets_the_answer_it_gets_alone(batch: list[Request]) -> None:
    together = serve(batch)
    for request, result in zip(batch, together, strict=True):
        (alone,) = serve([replace(request, arrival=0, abort_after=None)])
        if result.finish_reason == "abort":
            assert request.abort_after is not None
            assert result.token_ids == alone.token_ids[: len(result.token_ids)]
            assert alone.text.startswith(result.text)
            continue
        assert result.token_ids == alone.token_ids
        assert result.text == alone.text
        assert result.finish_reason == alone.finish_reason


def serve(batch: list[Request]) -> list[RequestResult]:
    """The results of requests that arrive at their steps, and are aborted at theirs."""
    serving = engine()
    ids: dict[int, int] = {}  # request id -> place in the batch
    aborts: list[tuple[int, int]] = []
    results: dict[int, Any] = {}
    todo = sorted(range(len(batch)), key=lambda place: batch[place].arrival)
    step = 0
    while todo or serving.has_unfinished():
        while todo and batch[todo[0]].arrival <= step:
            place = todo.pop(0)
            request_id = serving.add_request(batch[place].prompt, batch[place].sampling)
            ids[request_id] = place
            if (after := batch[place].abort_after) is not None:
                aborts.append((step + after, request_id))
        for when, request_id in aborts:
            if when == step:
                serving.abort(request_id)
        for event in serving.step():
            if event.result is not None:
                results[ids[event.request_id]] = event.result
        step += 1
        assert step < 3000, "the requests come to no end"
    assert_nothing_held(serving)
    return [results[place] for place in range(len(batch))]
