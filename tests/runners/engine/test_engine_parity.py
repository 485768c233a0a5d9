"""The engine on the real graph: a request's tokens are those of transformers, whatever happens around it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS
from support.models import build_model
from support.token_rule import TRANSFORMERS_ROUNDS_ONCE, TieCounter

from graph_gemma.graph_model.bucket import BucketTable, powers_of_two
from graph_gemma.graph_model.families import family_of
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.backends.inductor import InductorBackend
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.model import window_blocks
from graph_gemma.runners.engine.result import RequestResult
from graph_gemma.runners.engine.sampling_params import SamplingParams

CONFIGS = {**TINY_CONFIGS, **LATER_CONFIGS}
CONFIG = CONFIGS["grouped_kv_heads"]
BACKEND = EagerBackend(torch.device("cpu"))
KERNELS = tempfile.TemporaryDirectory()  # removed at the end


@dataclass(frozen=True)
class Sizes:
    """Prompts and pools that do to blocks of one size what their names say. Chunks end inside blocks."""

    block_size: int
    max_seq_len: int
    chunks: tuple[int, int]
    mixed: tuple[int, ...]  # lengths
    preempting: tuple[int, ...]
    few_blocks: int  # for which the sequences of `preempting` compete
    prefix: int  # a beginning that prompts share
    shared_blocks: int  # full blocks in it


SIZES = {
    16: Sizes(16, 128, (8, 24), (1, 7, 8, 9, 24, 25, 31, 33, 49, 64, 80), (30, 31, 32, 33, 20, 45), 9, 40, 2),
    128: Sizes(128, 384, (40, 72), (1, 71, 72, 73, 127, 128, 129, 200, 256, 257), (120, 126, 127, 125, 99), 5, 140, 1),
}


@dataclass(frozen=True)
class Setup:
    """A model, its dtype, and sizes; compiled by Inductor or not."""

    name: str
    dtype: torch.dtype
    sizes: Sizes
    compiled: bool = False

    def __str__(self) -> str:
        name = f"{self.name}-{str(self.dtype).removeprefix('torch.')}-blocks of {self.sizes.block_size}"
        return f"{name}-compiled" if self.compiled else name

    @cached_property
    def reference(self) -> Any:
        return make_model(CONFIGS[self.name], dtype=self.dtype)

    def llm(self, num_blocks: int) -> EngineDriver:
        """Layers with a window have blocks for two sequences, so that they are used again and again."""
        sizes = self.sizes
        widths = powers_of_two(2, sizes.max_seq_len // sizes.block_size)
        buckets = BucketTable((1, 4), (1, 2), sizes.chunks, widths, 2 * sizes.chunks[1])
        if self.compiled:  # few steps
            buckets = BucketTable((4,), (2,), sizes.chunks[1:], widths[-1:], 2 * sizes.chunks[1])
        config = CONFIGS[self.name]
        window = family_of(config).window
        held = window_blocks(window or 1, sizes.chunks[1], sizes.block_size, sizes.max_seq_len)
        model = build_model(
            InductorBackend(torch.device("cpu"), Path(KERNELS.name)) if self.compiled else BACKEND,
            self.reference,
            config,
            buckets,
            num_blocks=num_blocks,
            block_size=sizes.block_size,
            max_seq_len=sizes.max_seq_len,
            dtype=self.dtype,
            num_window_blocks=None if window is None else 2 * held,
        )
        return EngineDriver(model, vocab_size=config.vocab_size)

    def prompts(self, lengths: Iterable[int]) -> list[list[int]]:
        return [random_ids(length, length) for length in lengths]

    def check(self, prompts: list[list[int]], results: list[RequestResult], length: int, ties: TieCounter) -> None:
        """The token rule."""
        for prompt, result in zip(prompts, results, strict=True):
            assert len(result.token_ids) == length
            ties.check(self.reference, prompt, result.token_ids)


SETUPS = [
    Setup("grouped_kv_heads", torch.float32, SIZES[16]),
    Setup("one_kv_head", torch.bfloat16, SIZES[128]),
    Setup("gemma3", torch.float32, SIZES[16]),
]
MORE = [
    Setup(name, dtype, sizes)
    for name in ("grouped_kv_heads", "one_kv_head", "attention_bias", *LATER_CONFIGS)
    for dtype in (torch.float32, torch.bfloat16)
    for sizes in SIZES.values()
    if name in TINY_CONFIGS or dtype == torch.float32
] + [Setup(name, torch.float32, SIZES[16], compiled=True) for name in LATER_CONFIGS]
SLOW = [pytest.param(setup, marks=pytest.mark.slow) for setup in MORE if setup not in SETUPS]


@pytest.fixture(scope="module", params=[*SETUPS, *SLOW], ids=str)
def setup(request: pytest.FixtureRequest) -> Setup:
    found: Setup = request.param
    if found.dtype != torch.float32 and not TRANSFORMERS_ROUNDS_ONCE:
        pytest.skip("this transformers' norm rounds twice in 16 bit")
    return found


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_mixed_lengths_in_chunks_that_end_inside_blocks(setup: Setup, ties: TieCounter) -> None:
    prompts = setup.prompts(setup.sizes.mixed)
    results = setup.llm(num_blocks=48).generate(prompts, SamplingParams(max_new_tokens=20, ignore_eos=True))
    setup.check(prompts, results, 20, ties)


def test_forced_preemption(setup: Setup, ties: TieCounter) -> None:
    prompts = setup.prompts(setup.sizes.preempting)
    llm = setup.llm(num_blocks=setup.sizes.few_blocks)
    results = llm.generate(prompts, SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert llm.engine.statistics.preemptions > 0
    setup.check(prompts, results, 40, ties)


def test_prefix_hits(setup: Setup, ties: TieCounter) -> None:
    sizes = setup.sizes
    prefix, shared = random_ids(sizes.prefix, 1), sizes.shared_blocks * sizes.block_size
    prompts = [prefix + random_ids(length, length) for length in (1, 5, 8, 9, 30)]
    prompts += [prefix, prefix[:shared], prefix[: shared + 1]]
    llm = setup.llm(num_blocks=48)
    settings = SamplingParams(max_new_tokens=12, ignore_eos=True)
    results = llm.generate(prompts[:1], settings) + llm.generate(prompts[1:], settings)
    assert llm.engine.statistics.cached_prompt_tokens >= shared * 5
    setup.check(prompts, results, 12, ties)


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return make_model(CONFIG)


def build(reference: torch.nn.Module, num_blocks: int) -> CompiledModel:
    # Chunks of 8 and 24 tokens end inside blocks of 16.
    buckets = BucketTable((1, 4), (1, 2), (8, 24), powers_of_two(2, 8), 48)
    return build_model(BACKEND, reference, CONFIG, buckets, num_blocks=num_blocks)


def test_a_sampled_request_gets_its_tokens_among_others_too(reference: torch.nn.Module) -> None:
    prompts = [random_ids(length, length) for length in (3, 17, 40, 29, 64)]
    settings = [
        SamplingParams(temperature=1.0, seed=1, max_new_tokens=16, ignore_eos=True),
        SamplingParams(temperature=0.7, top_k=5, seed=2, max_new_tokens=16, ignore_eos=True),
        SamplingParams(temperature=1.3, top_p=0.6, seed=3, max_new_tokens=16, ignore_eos=True, logprobs=2),
        SamplingParams(max_new_tokens=16, ignore_eos=True),
        SamplingParams(temperature=1.0, top_k=9, top_p=0.9, seed=4, max_new_tokens=16, ignore_eos=True),
    ]
    together = EngineDriver(build(reference, num_blocks=16), vocab_size=CONFIG.vocab_size).generate(prompts, settings)
    alone_model = build(reference, num_blocks=16)
    for prompt, setting, result in zip(prompts, settings, together, strict=True):
        alone = EngineDriver(alone_model, vocab_size=CONFIG.vocab_size).generate(prompt, setting)[0]
        assert alone.token_ids == result.token_ids


def test_logprobs_are_those_of_transformers(reference: torch.nn.Module) -> None:
    prompt = random_ids(19, 5)
    llm = EngineDriver(build(reference, num_blocks=16), vocab_size=CONFIG.vocab_size)
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
