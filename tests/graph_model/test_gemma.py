"""The plain definition against transformers: logits, tokens and names; rounding of constants against torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import is_known, make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS
from support.token_rule import ROUNDS_ONCE, count_ties

from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.families.definition import GemmaRMSNorm, rotary_tables, round_to_dtype
from graph_gemma.graph_model.families.layer import Rotary

CONFIGS = {**TINY_CONFIGS, **LATER_CONFIGS}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def plain_and_reference(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The plain model and transformers' with the same random weights."""
    config = CONFIGS[name]
    if not is_known(config):
        pytest.skip(f"this transformers has no {config.model_type}")
    reference = make_model(config, dtype=dtype)
    plain = family_of(config).model().to(dtype)
    plain.load_state_dict(reference.state_dict())
    return plain.eval(), reference


def positions_of(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_transformers_in_float32(name: str) -> None:
    plain, reference = plain_and_reference(name, torch.float32)
    ids = torch.randint(0, CONFIGS[name].vocab_size, (4, 70), generator=torch.Generator().manual_seed(2))

    expected = reference(ids).logits
    found = plain(ids, positions_of(ids))

    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@ROUNDS_ONCE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_tokens_equal_transformers_in_16_bit(name: str, dtype: torch.dtype) -> None:
    """Teacher-forced: at every position both see the same prefix."""
    plain, reference = plain_and_reference(name, dtype)
    ids = torch.randint(0, CONFIGS[name].vocab_size, (8, 60), generator=torch.Generator().manual_seed(3))

    ties = count_ties(reference(ids).logits, plain(ids, positions_of(ids)).argmax(-1))

    assert ties < 0.01 * ids.numel()


@torch.no_grad()
def test_positions_may_start_anywhere() -> None:
    """Rotary embedding is relative: a shift of all positions changes rounding only, a shift of some changes more."""
    plain, reference = plain_and_reference("rope_and_eps", torch.float32)
    ids = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(4))
    shifted = positions_of(ids) + 37
    torn = shifted + (torch.arange(20) > 9)

    expected = reference(ids, position_ids=shifted).logits

    assert (plain(ids, shifted) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (plain(ids, torn) - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_names_are_those_of_transformers(name: str) -> None:
    plain, reference = plain_and_reference(name, torch.float32)

    def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
        return {key: parameter.shape for key, parameter in model.named_parameters()}

    assert shapes(plain) == shapes(reference)
    assert plain.state_dict().keys() == reference.state_dict().keys()


def test_a_tied_head_is_the_embedding() -> None:
    tied = family_of(TINY_CONFIGS["wide_heads"]).model()
    untied = family_of(TINY_CONFIGS["untied_head"]).model()
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize("config", [GEMMA_2B, GEMMA_7B, *TINY_CONFIGS.values()])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_scale_is_rounded_to_the_dtype(config: GemmaConfig, dtype: torch.dtype) -> None:
    rounded = round_to_dtype(config.embedding_scale, dtype)
    assert rounded == torch.tensor(math.sqrt(config.hidden_size), dtype=torch.float64).to(dtype).item()


def test_the_7b_embedding_scale_in_bfloat16_is_55_and_a_half() -> None:
    assert round_to_dtype(GEMMA_7B.embedding_scale, torch.bfloat16) == 55.5
    assert GEMMA_7B.embedding_scale == pytest.approx(55.4256)


# float32 values, because torch rounds a float64 to bfloat16 by way of float32, which can round twice.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(value=st.floats(2.0**-14, 2.0**15, width=32), sign=st.sampled_from((-1, 1)))
def test_rounding_is_torchs(dtype: torch.dtype, value: float, sign: int) -> None:
    assert round_to_dtype(sign * value, dtype) == torch.tensor(sign * value, dtype=torch.float32).to(dtype).item()


@given(value=st.floats(2.0**-100, 2.0**100))
def test_rounding_of_a_float64_to_float32_is_torchs(value: float) -> None:
    assert round_to_dtype(value, torch.float32) == torch.tensor(value, dtype=torch.float64).to(torch.float32).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_of_ties_is_to_even(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert round_to_dtype(1 + 0.5 * eps, dtype) == 1.0
    assert round_to_dtype(1 + 1.5 * eps, dtype) == 1 + 2 * eps
    assert round_to_dtype(0.0, dtype) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_norm_is_rounded_once(dtype: torch.dtype) -> None:
    """1 + weight keeps its float32 digits, which the dtype could not hold."""
    norm = GemmaRMSNorm(64, 1e-6).to(dtype)
    generator = torch.Generator().manual_seed(5)
    norm.weight.data = (torch.randn(64, generator=generator) * 1e-3).to(dtype)
    x = torch.randn(3, 64, generator=generator).to(dtype)

    x64 = x.double()
    exact = x64 / (x64.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight.double())
    early = x64 / (x64.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight).double()

    assert (norm(x) != exact.to(dtype)).float().mean() < 0.02
    assert (norm(x) != early.to(dtype)).float().mean() > 0.05


def test_rotary_angles_are_computed_in_float32() -> None:
    """In bfloat16 position 4099 would be 4096."""
    cos, sin = rotary_tables(torch.tensor([[4099]]), Rotary(10000.0, 16), torch.bfloat16)
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    angles = torch.cat((4099 * frequencies, 4099 * frequencies))
    torch.testing.assert_close(cos[0, 0, 0].double(), angles.cos(), rtol=0, atol=5e-3)
    torch.testing.assert_close(sin[0, 0, 0].double(), angles.sin(), rtol=0, atol=5e-3)
