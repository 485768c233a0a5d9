"""The engine on the real graph: a request's tokens are those of transformers, whatever happens around it."""

from __future__ import annotations

import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.models import build_model
from support.token_rule import check_greedy

from graph_model.backends.eager import EagerBackend
from graph_model.bucket import BucketTable, powers_of_two
from graph_model.compile import CompiledModel
from runners.engine.llm import LLM
from runners.engine.sampling_params import SamplingParams

CONFIG = TINY_CONFIGS["grouped_kv_heads"]
BACKEND = EagerBackend(torch.device("cpu"))


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return make_model(CONFIG)


def build(reference: torch.nn.Module, num_blocks: int) -> CompiledModel:
    # Chunks of 8 and 24 tokens end inside blocks of 16.
    buckets = BucketTable((1, 4), (1, 2), (8, 24), powers_of_two(2, 8), 48)
    return build_model(BACKEND, reference, CONFIG, buckets, num_blocks=num_blocks)


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_greedy(reference: torch.nn.Module, prompts: list[list[int]], answers: list[list[int]]) -> None:
    for prompt, answer in zip(prompts, answers, strict=True):
        assert check_greedy(reference, prompt, answer) == 0


def test_mixed_lengths_in_chunks_that_end_inside_blocks(reference: torch.nn.Module) -> None:
    prompts = [random_ids(length, length) for length in (1, 7, 8, 9, 24, 25, 31, 33, 49, 64, 80)]
    llm = LLM(build(reference, num_blocks=48), vocab_size=CONFIG.vocab_size)
    results = llm.generate(prompts, SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert_greedy(reference, prompts, [result.token_ids for result in results])


def test_forced_preemption(reference: torch.nn.Module) -> None:
    prompts = [random_ids(length, length) for length in (30, 31, 32, 33, 20, 45)]
    llm = LLM(build(reference, num_blocks=9), vocab_size=CONFIG.vocab_size)
    results = llm.generate(prompts, SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert llm.engine.statistics.preemptions > 0
    assert_greedy(reference, prompts, [result.token_ids for result in results])


def test_prefix_hits(reference: torch.nn.Module) -> None:
    prefix = random_ids(40, 1)
    prompts = [prefix + random_ids(length, length) for length in (1, 5, 8, 9, 30)] + [prefix, prefix[:32], prefix[:33]]
    llm = LLM(build(reference, num_blocks=48), vocab_size=CONFIG.vocab_size)
    settings = SamplingParams(max_new_tokens=12, ignore_eos=True)
    results = llm.generate(prompts[:1], settings) + llm.generate(prompts[1:], settings)
    assert llm.engine.statistics.cached_prompt_tokens >= 32 * 5
    assert_greedy(reference, prompts, [result.token_ids for result in results])


def test_a_sampled_request_gets_the_same_tokens_alone_and_among_others(reference: torch.nn.Module) -> None:
    prompts = [random_ids(length, length) for length in (3, 17, 40, 29, 64)]
    settings = [
        SamplingParams(temperature=1.0, seed=1, max_new_tokens=16, ignore_eos=True),
        SamplingParams(temperature=0.7, top_k=5, seed=2, max_new_tokens=16, ignore_eos=True),
        SamplingParams(temperature=1.3, top_p=0.6, seed=3, max_new_tokens=16, ignore_eos=True, logprobs=2),
        SamplingParams(max_new_tokens=16, ignore_eos=True),
        SamplingParams(temperature=1.0, top_k=9, top_p=0.9, seed=4, max_new_tokens=16, ignore_eos=True),
    ]
    together = LLM(build(reference, num_blocks=16), vocab_size=CONFIG.vocab_size).generate(prompts, settings)
    alone_model = build(reference, num_blocks=16)
    for prompt, setting, result in zip(prompts, settings, together, strict=True):
        alone = LLM(alone_model, vocab_size=CONFIG.vocab_size).generate(prompt, setting)[0]
        assert alone.token_ids == result.token_ids


def test_logprobs_are_those_of_transformers(reference: torch.nn.Module) -> None:
    prompt = random_ids(19, 5)
    llm = LLM(build(reference, num_blocks=16), vocab_size=CONFIG.vocab_size)
    (result,) = llm.generate(prompt, SamplingParams(max_new_tokens=10, ignore_eos=True, logprobs=3))
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + result.token_ids])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert result.logprobs is not None
    for row, token, found in zip(expected, result.token_ids, result.logprobs, strict=True):
        assert found.logprob == pytest.approx(row[token].item(), abs=1e-4)
        values, ids = row.topk(3)
        assert [token for token, _ in found.top] == ids.tolist()
        assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-4)
