"""Scoring through the engine: log-probabilities are those of transformers, whatever is shared, cut or preempted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.models import build_model
from support.token_rule import check_greedy

from graph_gemma.graph_model.bucket import BucketTable, powers_of_two
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine import EngineDriver, SamplingParams, ScoreRequest, Scores

CONFIG = TINY_CONFIGS["grouped_kv_heads"]
BACKEND = EagerBackend(torch.device("cpu"))


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return make_model(CONFIG)


def build(reference: torch.nn.Module, num_blocks: int = 48) -> CompiledModel:
    # Chunks of 8 and 24 tokens end inside blocks of 16.
    buckets = BucketTable((1, 4), (1, 2), (8, 24), powers_of_two(2, 8), 48)
    return build_model(BACKEND, reference, CONFIG, buckets, num_blocks=num_blocks)


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def expected(reference: torch.nn.Module, request: ScoreRequest) -> torch.Tensor:
    """Distributions behind the scored positions, [S, vocab]."""
    return reference(torch.tensor([request.token_ids])).logits[0, request.positions].log_softmax(-1)


def assert_scores(reference: torch.nn.Module, requests: list[ScoreRequest], scores: list[Scores]) -> None:
    for request, found in zip(requests, scores, strict=True):
        rows = expected(reference, request)
        np.testing.assert_array_equal(found.token_ids, rows.argmax(-1).numpy())
        if request.target_ids is not None:
            rows = rows.gather(-1, torch.tensor(request.target_ids)[:, None])[:, 0]
        np.testing.assert_allclose(found.logprobs, rows.numpy(), atol=1e-4)


def test_scores_of_short_answers_whole_texts_and_choices(reference: torch.nn.Module) -> None:
    context = random_ids(53, 1)
    requests = [ScoreRequest.continuation(context, random_ids(n, n)) for n in (1, 2, 5, 60)]
    requests += [ScoreRequest.continuation(random_ids(1, n), random_ids(n, n + 1)) for n in (7, 24, 90)]
    requests.append(ScoreRequest(context, [52, 52, 52], random_ids(3, 9)))
    requests.append(ScoreRequest(context, [0, 30, 52], random_ids(3, 10)))
    llm = EngineDriver(build(reference), vocab_size=CONFIG.vocab_size)
    assert_scores(reference, requests, llm.score(requests))
    assert llm.engine.statistics.cached_prompt_tokens >= 48 * 3, "contexts are computed once"
    assert llm.engine.statistics.decode_steps == 0


def test_what_is_scored_is_computed_though_its_text_is_cached(reference: torch.nn.Module) -> None:
    text = random_ids(64, 2)
    llm = EngineDriver(build(reference), vocab_size=CONFIG.vocab_size)
    llm.generate(text, SamplingParams(max_new_tokens=1))
    requests = [ScoreRequest.continuation(text[:n], text[n:]) for n in (1, 16, 17, 33, 63)]
    assert_scores(reference, requests, llm.score(requests))


def test_distributions(reference: torch.nn.Module) -> None:
    requests = [ScoreRequest(random_ids(n, n), list(range(n))) for n in (5, 24, 70)]
    scores = EngineDriver(build(reference), vocab_size=CONFIG.vocab_size).score(requests)
    assert scores[2].logprobs.shape == (70, CONFIG.vocab_size)
    assert_scores(reference, requests, scores)


def test_scoring_beside_generation_and_preemption(reference: torch.nn.Module) -> None:
    prompts = [random_ids(length, length) for length in (30, 31, 32, 33)]
    requests = [ScoreRequest.continuation(random_ids(40, n), random_ids(20, n + 1)) for n in range(3)]
    llm = EngineDriver(build(reference, num_blocks=9), vocab_size=CONFIG.vocab_size)
    scored: dict[int, Scores] = {}
    answers: dict[int, list[int]] = {}
    ids = []
    for index in range(4):
        answer = SamplingParams(max_new_tokens=40, ignore_eos=True)
        llm.engine.add_request(prompts[index], answer)
        if index < 3:
            ids.append(llm.engine.add_score_request(requests[index]))
    while llm.engine.has_unfinished():
        for event in llm.engine.step():
            if event.result is not None and event.result.finish_reason == "scored":
                assert event.token_id is None
                assert event.result.token_ids == []
                scored[event.request_id] = event.result.scores
            elif event.result is not None:
                answers[len(answers)] = [event.result.prompt_token_ids, event.result.token_ids]
    assert llm.engine.statistics.preemptions > 0
    assert_scores(reference, requests, [scored[request_id] for request_id in ids])
    for prompt, tokens in answers.values():
        assert check_greedy(reference, prompt, tokens) == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoreRequest([5, 6], [2], [1]), "positions"),
        (ScoreRequest([5, 6], [], []), "positions"),
        (ScoreRequest([5, 6], [1, 0], [1, 1]), "ascending"),
        (ScoreRequest([5, 6], [0, 1], [1]), "one for each"),
        (ScoreRequest([5, 6], [0], [CONFIG.vocab_size]), "vocabulary"),
        (ScoreRequest([5] * 128, [0], [1]), "max_seq_len"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    reference: torch.nn.Module, request_: ScoreRequest, message: str
) -> None:
    llm = EngineDriver(build(reference), vocab_size=CONFIG.vocab_size)
    with pytest.raises(UserError, match=message):
        llm.score([request_])
    assert not llm.engine.has_unfinished()
