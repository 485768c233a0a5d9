"""Inductor: transformers' tokens in every dtype, the reference kernels' samples, nothing compiled after warm-up, a
second start from the cache."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.models import build_model
from support.token_rule import ROUNDS_ONCE, TieCounter, check_greedy

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepOutput
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantization.schemes import find_scheme
from graph_gemma.runners.backends.base import Backend
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.backends.inductor import InductorBackend, cpp_compiler
from graph_gemma.runners.compile import CompileCache, CompiledModel
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="Inductor needs a C++ compiler")

CPU = torch.device("cpu")
CONFIG = dataclasses.replace(TINY_CONFIGS["one_kv_head"], num_hidden_layers=2)
BUCKETS = BucketTable((4,), (4,), (32,), (8,), 128)  # max_seq_len is 128
WARM = [Bucket("prefill", 4, 32, 0), Bucket("extend", 4, 32, 8), Bucket("decode", 4, 1, 8)]
LENGTHS = (1, 15, 16, 17, 31, 33, 65, 100)


@pytest.fixture(scope="module")
def kernel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def build(
    backend: Backend,
    reference: torch.nn.Module,
    root: Path,
    config: GemmaConfig = CONFIG,
    dtype: torch.dtype = torch.float32,
    warm: list[Bucket] = WARM,
) -> CompiledModel:
    model = build_model(backend, reference, config, BUCKETS, num_blocks=40, dtype=dtype, cache=CompileCache(root))
    model.warm_up(warm)
    return model


def prompts() -> list[list[int]]:
    """Token ids below the smallest of the vocabularies."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 251, (length,), generator=generator).tolist() for length in LENGTHS]


def test_tokens_of_many_lengths_equal_and_compile_nothing_more(kernel_dir: Path, tmp_path: Path) -> None:
    reference = make_model(CONFIG)
    model = build(InductorBackend(CPU, kernel_dir), reference, tmp_path)
    assert (model.report.compiled, model.report.from_cache) == (3, 0)
    results = EngineDriver(model, vocab_size=CONFIG.vocab_size).generate(
        prompts(), SamplingParams(max_new_tokens=24, ignore_eos=True)
    )
    for prompt, result in zip(prompts(), results, strict=True):
        assert check_greedy(reference, prompt, result.token_ids) == 0
    assert model.report.compiled == 3, "a step was compiled after warm-up"

    # A second start takes every step from the cache, without capturing, and gives the same tokens.
    second = build(InductorBackend(CPU, kernel_dir), reference, tmp_path)
    assert (second.report.compiled, second.report.from_cache) == (0, 3)
    again = EngineDriver(second, vocab_size=CONFIG.vocab_size).generate(
        prompts()[:3], SamplingParams(max_new_tokens=8, ignore_eos=True)
    )
    assert [r.token_ids for r in again] == [r.token_ids[:8] for r in results[:3]]

    # What the cache holds beyond a sequence's tokens never reaches its result, not even NaN.
    eager = build(EagerBackend(CPU), reference, tmp_path)
    for model_under_test in (second, eager):
        for cache in model_under_test._caches:
            cache.fill_(float("nan"))
        poisoned = EngineDriver(model_under_test, vocab_size=CONFIG.vocab_size).generate(
            prompts()[3:6], SamplingParams(max_new_tokens=8, ignore_eos=True)
        )
        assert [r.token_ids for r in poisoned] == [r.token_ids[:8] for r in results[3:6]]


@ROUNDS_ONCE
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("grouped_kv_heads", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("one_kv_head", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("one_kv_head", torch.float16, marks=pytest.mark.slow),
        pytest.param("attention_bias", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("attention_bias", torch.float16, marks=pytest.mark.slow),
        pytest.param("untied_head", torch.float16, marks=pytest.mark.slow),
        pytest.param("odd_vocabulary", torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tokens_follow_the_token_rule_in_every_dtype(
    name: str, dtype: torch.dtype, kernel_dir: Path, tmp_path: Path, ties: TieCounter
) -> None:
    config = dataclasses.replace(TINY_CONFIGS[name], num_hidden_layers=2)
    reference = make_model(config, dtype=dtype)
    model = build(InductorBackend(CPU, kernel_dir), reference, tmp_path, config, dtype)
    sampling = SamplingParams(max_new_tokens=64, ignore_eos=True)
    results = EngineDriver(model, vocab_size=config.vocab_size).generate(prompts(), sampling)
    assert sum(len(result.token_ids) for result in results) > 400
    for result in results:
        ties.check(reference, result.prompt_token_ids, result.token_ids)
    assert model.report.compiled == len(WARM), "a step was compiled after warm-up"


def test_a_sampled_step_equals_that_of_the_reference_kernels(kernel_dir: Path, tmp_path: Path) -> None:
    bucket = Bucket("prefill", 4, 32, 0, "sample", logprobs=3)
    reference = make_model(CONFIG)
    outputs = []
    for backend in (InductorBackend(CPU, kernel_dir), EagerBackend(CPU)):
        model = build(backend, reference, tmp_path, warm=[bucket])
        generator = np.random.default_rng(5)
        inputs = model.inputs(bucket)
        inputs.input_ids[:] = generator.integers(3, CONFIG.vocab_size, (4, 32))
        inputs.positions[:] = np.arange(32)
        first_slot = model.num_scratch_blocks * model.block_size
        inputs.slot_mapping[:] = first_slot + np.arange(4 * 32).reshape(4, 32)
        assert inputs.query_lens is not None
        inputs.query_lens[:] = [1, 7, 31, 32]
        for array, values in zip(
            inputs.sampling(),
            ([0.0, 0.7, 1.0, 1.5], [0, 5, 0, 9], [1.0, 1.0, 0.6, 0.9], [0.0, 0.3, 0.8, 0.55]),
            strict=True,
        ):
            array[:] = values
        outputs.append(model.run(bucket))
    found, expected = outputs
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.top_ids is not None
    assert expected.top_ids is not None
    assert found.top_ids.tolist() == expected.top_ids.tolist()
    np.testing.assert_allclose(found.logprob, expected.logprob, atol=1e-4)
    np.testing.assert_allclose(found.top_logprobs, expected.top_logprobs, atol=1e-4)
    # The greedy row took the most likely token, and some sampled row another one.
    is_greedy = found.token_ids == found.top_ids[:, 0]
    assert is_greedy[0]
    assert not is_greedy.all()


DECODE = Bucket("decode", 4, 1, 3, logprobs=2)


def decode_all(model: CompiledModel, ids: torch.Tensor) -> list[StepOutput]:
    """What follows each token of `ids` [4, tokens], fed one at a time."""
    outputs = []
    for position in range(ids.shape[1]):
        inputs = model.inputs(DECODE)
        table = model.num_scratch_blocks + np.arange(4 * 3).reshape(4, 3)
        assert inputs.context_lens is not None
        assert inputs.block_table is not None
        inputs.input_ids[:, 0], inputs.positions[:], inputs.context_lens[:] = ids[:, position], position, position + 1
        inputs.block_table[:] = table
        inputs.slot_mapping[:, 0] = table[:, position // 16] * 16 + position % 16
        outputs.append(copy.deepcopy(model.run(DECODE)))
    return outputs


@pytest.mark.parametrize(
    ("schemes", "dtype"),
    [("w8a8", torch.float32), ("w8a16+kv8", torch.bfloat16), ("w8a8_dynamic+kv8", torch.bfloat16)],
)
def test_quantized_steps_choose_the_reference_kernels_tokens(
    schemes: str, dtype: torch.dtype, kernel_dir: Path, tmp_path: Path
) -> None:
    """All linears of each scheme, the int8 cache written and read. A token may differ where the best two are a tie."""
    config = dataclasses.replace(CONFIG, num_hidden_layers=1)
    scheme: Any = schemes.removesuffix("+kv8")
    linears = select_linears(config, [] if scheme == "w8a16" else ["down_proj", "lm_head"])
    quantization = Quantization(scheme, linears, stored=scheme == "w8a8", kv8=schemes.endswith("kv8"))
    ids = torch.randint(3, config.vocab_size, (4, 40), generator=torch.Generator().manual_seed(5))
    found, expected = (
        decode_all(
            build_model(
                backend,
                make_model(config),
                config,
                BUCKETS,
                num_blocks=12,
                dtype=dtype,
                cache=CompileCache(tmp_path),
                quantization=quantization,
            ),
            ids,
        )
        for backend in (InductorBackend(CPU, kernel_dir), EagerBackend(CPU))
    )
    differing = 0
    tie = 0.05 if dtype == torch.float32 else 0.1  # a few units of bfloat16 at logits of this size
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.top_logprobs is not None
        differ = ours.token_ids != theirs.token_ids
        gaps = theirs.top_logprobs[:, 0] - theirs.top_logprobs[:, 1]
        assert (gaps[differ] <= tie).all(), (ours, theirs)
        differing += int(differ.sum())
    assert differing <= 0.1 * ids.numel()  # logits of a random model lie close together
    chosen = {int(token) for output in expected for token in output.token_ids}
    assert len(chosen) > 20  # the model does not say the same whatever it reads


def test_the_cpu_path_chooses_kernels_by_dtype_and_scheme(tmp_path: Path) -> None:
    backend = InductorBackend(CPU, tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        few = [] if dtype == torch.float32 else ["skinny_linear"]
        many = "onednn_linear" if ops.onednn_supports(dtype) else "tiled_linear"
        sums = ["tiled_linear"] if many == "onednn_linear" else []  # of several ranks
        expected = {
            None: [*few, many],
            find_scheme("w8a16"): [*few, many, "native_int8_linear"],
            find_scheme("w8a8"): [*few, many, *sums, "native_int8_linear"],
        }
        for scheme, names in expected.items():
            assert [p.name for p in backend.kernel_passes(dtype, scheme)] == names


def test_onednn_linear_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16), (2, 5, 16), (1, 16)):
        x = torch.randn(shape, generator=generator)
        weight, bias = torch.randn(24, 16, generator=generator), torch.randn(24, generator=generator)
        for b in (None, bias):
            expected = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
            assert torch.allclose(ops.onednn_linear(x, weight, b).double(), expected, atol=1e-5)
