"""Any mixture of requests on a real model in float32: each gets the answer that it gets alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.arrivals import Request, serve
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.engine_fakes import byte_level_tokenizer
from support.models import build_model

from graph_gemma.graph_model.bucket import BucketTable
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine import Engine, RequestResult, SamplingParams

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
    together = results(batch)
    for request, result in zip(batch, together, strict=True):
        (alone,) = results([replace(request, arrival=0, abort_after=None)])
        if result.finish_reason == "abort":
            assert request.abort_after is not None
            assert result.token_ids == alone.token_ids[: len(result.token_ids)]
            assert alone.text.startswith(result.text)
            continue
        assert result.token_ids == alone.token_ids
        assert result.text == alone.text
        assert result.finish_reason == alone.finish_reason


def results(batch: list[Request]) -> list[RequestResult]:
    return [answer.result for answer in serve(engine(), batch, most_steps=3000)]
