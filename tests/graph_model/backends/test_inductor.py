"""Inductor: the same tokens as the reference kernels, nothing compiled after warm-up, a second start from the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.models import build_model
from support.token_rule import check_greedy

from graph_model import ops
from graph_model.backends import Backend
from graph_model.backends.eager import EagerBackend
from graph_model.backends.inductor import InductorBackend, cpp_compiler
from graph_model.bucket import Bucket, BucketTable
from graph_model.compile import CompileCache, CompiledModel
from runners.engine.llm import LLM
from runners.engine.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="Inductor needs a C++ compiler")

CPU = torch.device("cpu")
CONFIG = dataclasses.replace(TINY_CONFIGS["one_kv_head"], num_hidden_layers=2)
BUCKETS = BucketTable((4,), (4,), (32,), (8,), 128)
WARM = [Bucket("prefill", 4, 32, 0), Bucket("extend", 4, 32, 8), Bucket("decode", 4, 1, 8)]
LENGTHS = (1, 15, 16, 17, 31, 33, 65, 100)


@pytest.fixture(scope="module")
def kernel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def build(backend: Backend, reference: torch.nn.Module, root: Path) -> CompiledModel:
    model = build_model(backend, reference, CONFIG, BUCKETS, num_blocks=40, cache=CompileCache(root))
    model.warm_up(WARM)
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, CONFIG.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def test_tokens_equal_transformers_over_many_lengths_and_nothing_compiles_after_warm_up(
    kernel_dir: Path, tmp_path: Path
) -> None:
    reference = make_model(CONFIG)
    model = build(InductorBackend(CPU, kernel_dir), reference, tmp_path)
    assert (model.report.compiled, model.report.from_cache) == (3, 0)
    results = LLM(model, vocab_size=CONFIG.vocab_size).generate(
        prompts(), SamplingParams(max_new_tokens=24, ignore_eos=True)
    )
    for prompt, result in zip(prompts(), results, strict=True):
        assert check_greedy(reference, prompt, result.token_ids) == 0
    assert model.report.compiled == 3, "a step was compiled after warm-up"

    # A second start takes every step from the cache, without capturing, and gives the same tokens.
    second = build(InductorBackend(CPU, kernel_dir), reference, tmp_path)
    assert (second.report.compiled, second.report.from_cache) == (0, 3)
    again = LLM(second, vocab_size=CONFIG.vocab_size).generate(
        prompts()[:3], SamplingParams(max_new_tokens=8, ignore_eos=True)
    )
    assert [r.token_ids for r in again] == [r.token_ids[:8] for r in results[:3]]

    # What the cache holds beyond a sequence's tokens never reaches its result, not even NaN.
    eager = build(EagerBackend(CPU), reference, tmp_path)
    for model_under_test in (second, eager):
        for cache in model_under_test._caches:
            cache.fill_(float("nan"))
        poisoned = LLM(model_under_test, vocab_size=CONFIG.vocab_size).generate(
            prompts()[3:6], SamplingParams(max_new_tokens=8, ignore_eos=True)
        )
        assert [r.token_ids for r in poisoned] == [r.token_ids[:8] for r in results[3:6]]


def test_the_cpu_path_chooses_kernels_by_dtype_and_scheme(tmp_path: Path) -> None:
    backend = InductorBackend(CPU, tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        few = [] if dtype == torch.float32 else ["few_rows_linear"]
        many = "onednn_linear" if ops.onednn_supports(dtype) else "tiled_linear"
        assert [p.name for p in backend.kernel_passes(dtype)] == [*few, many]
        assert [p.name for p in backend.kernel_passes(dtype, "w8a16")] == [*few, many, "native_int8_linear"]


def test_onednn_linear_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16), (2, 5, 16), (1, 16)):
        x = torch.randn(shape, generator=generator)
        weight, bias = torch.randn(24, 16, generator=generator), torch.randn(24, generator=generator)
        for b in (None, bias):
            expected = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
            assert torch.allclose(ops.onednn_linear(x, weight, b).double(), expected, atol=1e-5)
