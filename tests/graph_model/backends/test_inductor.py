"""Inductor: the same tokens as the reference kernels, nothing compiled after warm-up, a second start from the cache."""

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
from support.token_rule import check_greedy

from graph_model import ops
from graph_model.backends import Backend
from graph_model.backends.eager import EagerBackend
from graph_model.backends.inductor import InductorBackend, cpp_compiler
from graph_model.bucket import Bucket, BucketTable, StepOutput
from graph_model.compile import CompileCache, CompiledModel
from graph_model.quantisation import Quantisation, select_linears
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
def test_quantised_steps_choose_the_tokens_of_the_reference_kernels(
    schemes: str, dtype: torch.dtype, kernel_dir: Path, tmp_path: Path
) -> None:
    """All linears of each scheme, the int8 cache written and read. A token may differ where the best two are a tie."""
    config = dataclasses.replace(CONFIG, num_hidden_layers=1)
    scheme: Any = schemes.removesuffix("+kv8")
    linears = select_linears(config, [] if scheme == "w8a16" else ["down_proj", "lm_head"])
    quantisation = Quantisation(scheme, linears, stored=scheme == "w8a8", kv8=schemes.endswith("kv8"))
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
                quantisation=quantisation,
            ),
            ids,
        )
        for backend in (InductorBackend(CPU, kernel_dir), EagerBackend(CPU))
    )
    differing = 0
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.top_logprobs is not None
        differ = ours.token_ids != theirs.token_ids
        gaps = theirs.top_logprobs[:, 0] - theirs.top_logprobs[:, 1]
        assert (gaps[differ] <= 0.05).all(), (ours, theirs)
        differing += int(differ.sum())
    assert differing <= 0.03 * ids.numel()
    chosen = {int(token) for output in expected for token in output.token_ids}
    assert len(chosen) > 20  # the model does not say the same whatever it reads


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
