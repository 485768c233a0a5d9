"""A step whose logits are not finite ends its requests with an error that says where that began, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.models import build_model
from support.overflow import LAYER, POISON, check_message, make_overflowing_model, make_overflowing_sum

from graph_gemma.graph_model.bucket import BucketTable
from graph_gemma.graph_model.errors import NotFiniteError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.quantizer import Float16Report, largest_values
from graph_gemma.graph_model.residual_scale import DEFAULT_EXPONENT
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine import EngineDriver, RequestResult, SamplingParams, ScoreRequest

CONFIG = TINY_CONFIGS["untied_head"]
GOOD = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    reference = make_overflowing_model(CONFIG)
    buckets = BucketTable((1, 4), (1, 2), (8, 24), (4,), 48)
    backend = EagerBackend(torch.device("cpu"))
    return build_model(backend, reference, CONFIG, buckets, num_blocks=24, max_seq_len=64, dtype=torch.float16)


def check_error(result: RequestResult) -> None:
    assert (result.finish_reason, result.token_ids) == ("error", [])
    assert isinstance(result.error, NotFiniteError)
    check_message(result.error)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_only_the_requests_at_fault_end(model: CompiledModel, temperature: float, logprobs: int | None) -> None:
    model.num_searches = 0
    sampling = SamplingParams(temperature=temperature, seed=1, max_new_tokens=3, logprobs=logprobs)
    alone = EngineDriver(model, vocab_size=CONFIG.vocab_size).generate([GOOD], sampling)[0]
    assert (alone.finish_reason, len(alone.token_ids)) == ("length", 3)
    driver = EngineDriver(model, vocab_size=CONFIG.vocab_size)
    results = driver.generate([GOOD, [*GOOD, POISON], [*GOOD[:2], POISON, *range(3, 40)], GOOD], sampling)
    assert results[0].token_ids == results[3].token_ids == alone.token_ids
    check_error(results[1])
    check_error(results[2])
    # Blocks that hold NaN are given to others, which never see it.
    assert driver.generate([GOOD] * 4, sampling)[3].token_ids == alone.token_ids


def test_no_score_is_made_of_nan(model: CompiledModel) -> None:
    model.num_searches = 0
    driver = EngineDriver(model, vocab_size=CONFIG.vocab_size)
    good = ScoreRequest(GOOD, [2, 3], [4, 4])
    assert np.isfinite(driver.score([good])[0].logprobs).all()
    for bad in (ScoreRequest([*GOOD, POISON], [4], [4]), ScoreRequest([*GOOD, POISON], [4])):
        with pytest.raises(NotFiniteError, match=LAYER.replace(".", r"\.")):
            driver.score([good, bad])


def test_a_model_that_goes_on_failing_is_searched_a_few_times(model: CompiledModel) -> None:
    model.num_searches = 0
    driver = EngineDriver(model, vocab_size=CONFIG.vocab_size)
    errors = [str(driver.generate([[POISON, n]])[0].error) for n in range(3, 8)]
    assert [LAYER in error for error in errors] == [True, True, True, False, False]
    assert all("not finite" in error for error in errors)


def test_a_sum_that_overflows_is_named_as_the_report_names_it(tmp_path: Path) -> None:
    """Gemma 1 adds its branches to the residual stream without a norm, so nothing is scaled and the check guards."""
    reference = make_overflowing_sum(CONFIG)
    buckets = BucketTable((1,), (1,), (8,), (8,), 8)
    backend = EagerBackend(torch.device("cpu"))
    model = build_model(backend, reference, CONFIG, buckets, num_blocks=8, dtype=torch.float16)
    driver = EngineDriver(model, vocab_size=CONFIG.vocab_size)
    good, bad = driver.generate([GOOD, [*GOOD, POISON]], SamplingParams(max_new_tokens=2))
    assert (good.finish_reason, len(good.token_ids)) == ("length", 2)
    assert (bad.finish_reason, bad.token_ids) == ("error", [])
    assert "begin in the residual sum that model.layers.2.input_layernorm reads" in str(bad.error)
    reference.save_pretrained(tmp_path)
    found = largest_values(tmp_path, [[*GOOD, POISON]])
    report = "\n".join(Float16Report.of(family_of(CONFIG), found, DEFAULT_EXPONENT).sentences())
    assert "warning: the residual stream overflows in float16, first in layer 1." in report


def test_what_a_fused_kernel_overflows_in_is_said() -> None:
    """The search computes with the reference kernels, which may stay finite."""
    config = replace(CONFIG, num_hidden_layers=1)
    buckets = BucketTable((1,), (1,), (8,), (8,), 8)
    backend = EagerBackend(torch.device("cpu"))
    built = build_model(backend, make_model(config), config, buckets, num_blocks=8, block_size=16)
    EngineDriver(built).generate([GOOD], SamplingParams(max_new_tokens=1))
    ((bucket, _),) = built._loaded.items()
    (error,) = built.explain_not_finite(bucket, [0])
    assert "fused kernel" in str(error)
