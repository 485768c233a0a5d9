"""Choosing tokens: greedy and sampled choice against exact distributions, log-probabilities, the last token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from graph_gemma.graph_model import ops

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.1, 1.7, -3.0, 0.0, 0.9, -0.4, 1.4, -8.0, 0.6])
SETTINGS = {
    "temperature": (0.7, 0, 1.0),
    "hot": (2.5, 0, 1.0),
    "cold": (0.2, 0, 1.0),
    "top_k": (1.0, 4, 1.0),
    "top_p": (1.0, 0, 0.8),
    "tiny_top_p": (1.0, 0, 1e-6),
    "temperature_top_k": (1.8, 5, 1.0),
    "temperature_top_p": (1.8, 0, 0.6),
    "top_k_top_p": (1.0, 6, 0.75),
    "all": (1.5, 7, 0.9),
    "top_k_of_the_whole_vocabulary": (1.0, 12, 1.0),
    "top_k_beyond_the_vocabulary": (1.0, 1000, 0.9),
}
CHI_SQUARE_11_AT_0_001 = 31.26  # fewer degrees of freedom have lower critical values


def exact_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities by the definition, in float64: sort, cut to k, renormalize, cut to the nucleus, renormalize."""
    scaled = logits.double().numpy() / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p < 1:
        reached, keep = 0.0, 0
        while reached < top_p and keep < len(p):
            reached += p[order[keep]]
            keep += 1
        p[order[keep:]] = 0
        p /= p.sum()
    return p


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One row per uniform, all with the same logits and settings."""
    rows = uniform.shape[0]
    return ops.sample_token(
        logits.expand(rows, -1),
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        uniform,
    )


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_grid_of_uniforms_draws_each_id_in_its_share(setting: tuple[float, int, float]) -> None:
    rows = 20_000
    uniform = (torch.arange(rows, dtype=torch.float32) + 0.5) / rows
    counts = np.bincount(draw(LOGITS, uniform, *setting).numpy(), minlength=12)
    expected = exact_distribution(LOGITS, *setting)
    assert np.abs(counts - rows * expected).max() <= 1.5
    assert (counts[expected == 0] == 0).all()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_random_uniforms_draw_the_distribution(setting: tuple[float, int, float]) -> None:
    rows = 20_000
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(1))
    counts = np.bincount(draw(LOGITS, uniform, *setting).numpy(), minlength=12)
    expected = rows * exact_distribution(LOGITS, *setting)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < CHI_SQUARE_11_AT_0_001


def test_the_test_would_see_a_wrong_distribution() -> None:
    rows = 20_000
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(1))
    counts = np.bincount(draw(LOGITS, uniform, 1.0, 0, 1.0).numpy(), minlength=12)
    expected = rows * exact_distribution(LOGITS, 1.1, 0, 1.0)
    assert ((counts - expected) ** 2 / expected).sum() > CHI_SQUARE_11_AT_0_001


EXTREMES = torch.tensor([0.0, 2.0**-149, 2.0**-24, 1 - 2.0**-23, float(np.nextafter(np.float32(1), np.float32(0)))])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("vocab", [12, 1000, 20_011])
def test_no_uniform_draws_an_id_that_is_cut(setting: tuple[float, int, float], vocab: int) -> None:
    """The ends of the interval, and every edge between two ids: cut ids stand at both ends of the order."""
    temperature, top_k, top_p = setting
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(2)) * 3
    logits[0] = logits[-1] = -20.0
    expected = exact_distribution(logits, temperature, top_k, top_p)
    edges = np.cumsum(expected)[expected > 0][:20].astype(np.float32)
    below = np.nextafter(np.float32(1), np.float32(0))
    around = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1))])
    uniform = torch.cat([EXTREMES, torch.from_numpy(around.clip(0, below))])

    drawn = draw(logits, uniform, temperature, top_k, top_p).numpy()

    kept = np.flatnonzero(expected)
    # A nucleus that ends within rounding of top_p may hold one id more or less.
    nearly = np.argsort(-logits.numpy(), kind="stable")[: len(kept) + (top_p < 1)]
    assert set(drawn) <= set(nearly)
    if top_p == 1:
        assert drawn[0] == kept[np.flatnonzero(expected[kept] > 1e-30)[0]]
        assert set(drawn) <= set(kept)


def test_uniform_just_below_one_draws_the_last_kept_id() -> None:
    logits = torch.tensor([-50.0, 1.0, 0.0, 1.0, -50.0])
    drawn = draw(logits, EXTREMES, 1.0, 3, 1.0)
    assert drawn.tolist() == [1, 1, 1, 3, 3]
    assert draw(logits, torch.ones(1), 1.0, 3, 1.0).tolist() == [3]  # as would 1, which rounding may make of it


def test_temperature_zero_is_greedy_whatever_else_is_set() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(4))
    top_k = torch.arange(64) % 5
    top_p = torch.linspace(0.05, 1.0, 64)
    drawn = ops.sample_token(logits, torch.zeros(64), top_k, top_p, uniform)
    assert torch.equal(drawn, logits.argmax(-1))
    assert drawn.dtype == torch.int64


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (1, 0.5), (0, 1e-9)])
def test_one_id_left_is_greedy(top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(5))[0]
    uniform = torch.cat([EXTREMES, torch.linspace(0, 0.99, 20)])
    assert (draw(logits, uniform, 1.3, top_k, top_p) == logits.argmax()).all()


def test_a_temperature_near_zero_is_nearly_greedy() -> None:
    drawn = draw(LOGITS, EXTREMES, 1e-5, 0, 1.0)
    assert (drawn == 1).all()


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (1, 1.0, {1}),
        (0, 1e-9, {1}),
        (2, 1.0, {1, 3}),
        (3, 1.0, {0, 1, 3}),
        (4, 1.0, {0, 1, 2, 3}),
        (5, 0.9, {0, 1, 2, 3}),
    ],
)
def test_of_equally_likely_ids_the_lowest_are_kept(top_k: int, top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert set(draw(logits, uniform, 1.0, top_k, top_p).tolist()) == kept


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_tied_logits_draw_each_id_in_its_share(setting: tuple[float, int, float]) -> None:
    rows, tied = 20_000, LOGITS.round()
    uniform = (torch.arange(rows, dtype=torch.float32) + 0.5) / rows
    counts = np.bincount(draw(tied, uniform, *setting).numpy(), minlength=12)
    assert np.abs(counts - rows * exact_distribution(tied, *setting)).max() <= 1.5


@pytest.mark.parametrize(
    "bad", [[torch.nan] * 12, [torch.inf, *[0.0] * 11], [-torch.inf] * 12, [*[0.0] * 11, torch.nan]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_that_are_not_finite_have_no_token(bad: list[float], dtype: torch.dtype) -> None:
    logits = torch.stack((LOGITS, torch.tensor(bad), LOGITS)).to(dtype)
    right = int(LOGITS.argmax())
    assert ops.greedy_token(logits).tolist() == [right, ops.NOT_FINITE, right]
    for temperature in (0.0, 1.0):
        rows = torch.full((3,), temperature)
        drawn = ops.sample_token(logits, rows, torch.tensor([1, 1, 1]), torch.ones(3), torch.full((3,), 0.5))
        assert drawn.tolist() == [right, ops.NOT_FINITE, right]
    chosen, top_ids, top = ops.token_logprobs(logits, drawn, 2)
    assert chosen[[0, 2]].isfinite().all()
    assert top_ids[0].tolist() == top_ids[2].tolist()
    assert torch.equal(top[0], top[2])


def test_minus_infinity_is_a_logit_like_any_other() -> None:
    logits = LOGITS.clone()
    logits[3] = -torch.inf
    assert ops.greedy_token(logits[None]).tolist() == [1]
    assert set(draw(logits, EXTREMES, 1.0, 0, 1.0).tolist()) <= set(range(12)) - {3}


def test_a_row_does_not_depend_on_the_other_rows() -> None:
    rows = 48
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(rows, 300, generator=generator) * 2
    settings = (
        torch.where(torch.arange(rows) % 4 == 0, 0.0, torch.rand(rows, generator=generator) + 0.3),
        torch.arange(rows) % 3 * 20,
        torch.where(torch.arange(rows) % 2 == 0, 1.0, 0.7),
        torch.rand(rows, generator=generator),
    )
    drawn = ops.sample_token(logits, *settings)
    alone = [ops.sample_token(logits[i : i + 1], *(s[i : i + 1] for s in settings)) for i in range(rows)]
    assert torch.equal(drawn, torch.cat(alone))
    shuffled = torch.randperm(rows, generator=generator)
    assert torch.equal(ops.sample_token(logits[shuffled], *(s[shuffled] for s in settings)), drawn[shuffled])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_logits_are_sampled_in_float32(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    uniform = (torch.arange(2000) + 0.5) / 2000
    assert torch.equal(draw(logits, uniform, 0.9, 8, 0.9), draw(logits.float(), uniform, 0.9, 8, 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [7, 251, 4096])
def test_greedy_takes_the_lowest_of_equals(vocab: int, dtype: torch.dtype) -> None:
    logits = torch.randn(20, vocab, generator=torch.Generator().manual_seed(7)).to(dtype)
    positions = torch.randint(0, vocab, (20, 3), generator=torch.Generator().manual_seed(8))
    logits.scatter_(1, positions, 9.0)
    assert torch.equal(ops.greedy_token(logits), positions.min(1).values)
    # Rows of sampling with temperature 0 break ties alike.
    zeros, ones = torch.zeros(20), torch.ones(20)
    sampled = ops.sample_token(logits, zeros, zeros.long(), ones, zeros)
    assert torch.equal(sampled, positions.min(1).values)


def test_last_token_takes_each_rows_last_real_token() -> None:
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(9))
    lens = torch.tensor([1, 5, 3, 2])
    found = ops.last_token(x, lens)
    assert torch.equal(found, torch.stack([x[row, length - 1] for row, length in enumerate(lens.tolist())]))


def test_last_token_ignores_padding() -> None:
    x = torch.full((2, 4, 3), float("nan"))
    x[0, 1], x[1, 0] = 1.0, 2.0
    assert torch.equal(ops.last_token(x, torch.tensor([2, 1])), torch.tensor([[1.0] * 3, [2.0] * 3]))


@pytest.mark.parametrize("top", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logprobs_are_those_of_the_whole_distribution(top: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, 40, generator=torch.Generator().manual_seed(10)) * 3).to(dtype)
    chosen = torch.tensor([0, 39, 7, 7, 12, 30])

    found, ids, values = ops.token_logprobs(logits, chosen, top)

    exact = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    assert (found.dtype, ids.dtype, values.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.shape, ids.shape, values.shape) == ((6,), (6, top), (6, top))
    torch.testing.assert_close(found.double(), exact[torch.arange(6), chosen], rtol=1e-5, atol=1e-5)
    best = exact.sort(-1, descending=True).values[:, :top]
    torch.testing.assert_close(values.double(), best, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact.gather(1, ids), best, rtol=0, atol=0)


ROWS = torch.ones(3)
CALLS = {
    "last_token": (ops.last_token, (torch.randn(3, 4, 5), torch.tensor([1, 4, 2]))),
    "greedy_token": (ops.greedy_token, (torch.randn(3, 7),)),
    "sample_token": (ops.sample_token, (torch.randn(3, 7), ROWS, ROWS.long() * 3, ROWS * 0.9, ROWS * 0.5)),
    "token_logprobs": (ops.token_logprobs, (torch.randn(3, 7), torch.tensor([1, 4, 2]), 2)),
}


@pytest.mark.parametrize(("op", "arguments"), CALLS.values(), ids=CALLS)
def test_schema_and_fake_kernel_are_as_declared(op: torch._ops.OpOverload, arguments: tuple) -> None:
    torch.library.opcheck(op, arguments)


def test_take_tokens_picks_each_position_of_each_row() -> None:
    x = torch.arange(2 * 4 * 3).view(2, 4, 3).float()
    positions = torch.tensor([[3, 0, 0, 1, 2], [1, 1, 2, 0, 3]])
    expected = np.stack([x.numpy()[row, places] for row, places in enumerate(positions.numpy())])
    np.testing.assert_array_equal(ops.take_tokens(x, positions).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_log_probabilities_are_those_of_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 3, 300) * 8).to(dtype)
    targets = torch.randint(0, 300, (2, 3))
    exact = logits.double().numpy()
    exact = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    found = ops.log_probabilities(logits)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-5)
    chosen = np.take_along_axis(exact, targets.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(ops.target_logprobs(logits, targets).numpy(), chosen, atol=1e-5)
