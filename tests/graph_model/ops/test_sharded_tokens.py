"""Choosing tokens from parts of the logits: the same as from whole logits, for every cut, tie and cap."""

from __future__ import annotations

import pytest
import torch
from support.ranks import run_ranks
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.tensor_parallel import Shard

ROWS, VOCABULARY = 64, 96


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3


def part(x: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """This rank's part of the logits, and its number as the graph gets it."""
    start, stop = shard.part(x.shape[-1])
    return x[..., start:stop], torch.tensor([shard.rank])


def sampling_inputs() -> list[Tensor]:
    """temperature, top_k, top_p, uniform: rows that are greedy, free, and cut in every way."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(ROWS)
    temperature = torch.where(rows % 5 == 0, 0.0, 0.4 + rows / ROWS)
    top_k = torch.where(rows % 3 == 0, 0, rows % 40)
    top_p = torch.where(rows % 4 == 0, 1.0, 0.2 + 0.7 * torch.rand(ROWS, generator=generator))
    return [temperature, top_k, top_p, torch.rand(ROWS, generator=generator)]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_embedding_is_the_sum_of_the_ranks(world_size: int) -> None:
    table = torch.randn(VOCABULARY, 5)
    ids = torch.randint(0, VOCABULARY, (3, 7))

    def embed(shard: Shard) -> Tensor:
        start, stop = shard.part(VOCABULARY)
        return ops.all_reduce(ops.sharded_embedding(table[start:stop], ids, torch.tensor([shard.rank])))

    for result in run_ranks(world_size, embed):
        assert torch.equal(result, table[ids])


@pytest.mark.parametrize("world_size", [2, 8])
def test_greedy_takes_the_lowest_of_equal_ids(world_size: int, logits: Tensor) -> None:
    tied = (logits / 3).round()  # ties within ranks and across them

    def choose(shard: Shard) -> Tensor:
        local, rank = part(tied, shard)
        return ops.sharded_greedy_token(local, rank, world_size)

    expected = (tied == tied.amax(-1, keepdim=True)).int().argmax(-1)
    for result in run_ranks(world_size, choose):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_scored_places_of_a_row_are_those_of_whole_logits(world_size: int, logits: Tensor) -> None:
    """Rows of several places each; some ids are so unlikely that only their own rank knows how much."""
    whole = torch.cat((logits[:-8], 40 * logits[-8:])).view(4, ROWS // 4, VOCABULARY)
    ids = torch.randint(0, VOCABULARY, whole.shape[:2], generator=torch.Generator().manual_seed(3))

    def score(shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        local, rank = part(whole, shard)
        return (
            ops.sharded_greedy_token(local, rank, world_size),
            ops.sharded_target_logprobs(local, ids, rank, world_size),
            ops.sharded_log_probabilities(local, world_size),
        )

    expected = whole.double().log_softmax(-1)
    for chosen, targets, rows in run_ranks(world_size, score):
        assert torch.equal(chosen, whole.argmax(-1))
        torch.testing.assert_close(targets.double(), expected.gather(-1, ids[..., None])[..., 0], atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(rows.double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(("world_size", "cap"), [(2, 256), (4, 24), (8, 4), (2, 1)])
def test_a_draw_is_that_from_whole_logits(world_size: int, cap: int, logits: Tensor) -> None:
    sampling = sampling_inputs()

    def draw(shard: Shard) -> tuple[Tensor, Tensor]:
        local, rank = part(logits, shard)
        ids, missed = ops.sharded_sample_token(local, *sampling, rank, world_size, cap)
        return ops.redraw([ids, missed, local], sampling, -1, world_size)[0], missed

    expected = ops.sample_token(logits, *sampling)
    for result, missed in run_ranks(world_size, draw):
        assert torch.equal(result, expected)
        assert bool(missed.any()) == (cap < VOCABULARY // world_size)
        assert not missed[sampling[0] == 0].any()


@pytest.mark.parametrize(("world_size", "cap"), [(2, 256), (4, 12), (8, 3)])
def test_tied_logits_are_drawn_as_from_whole_logits(world_size: int, cap: int, logits: Tensor) -> None:
    tied, sampling = logits.round(), sampling_inputs()
    sampling[1][1::3] = 1

    def draw(shard: Shard) -> Tensor:
        local, rank = part(tied, shard)
        ids, missed = ops.sharded_sample_token(local, *sampling, rank, world_size, cap)
        return ops.redraw([ids, missed, local], sampling, -1, world_size)[0]

    expected = ops.sample_token(tied, *sampling)
    assert torch.equal(expected[1::3], tied.argmax(-1)[1::3])
    for result in run_ranks(world_size, draw):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("cap", [256, 2])
def test_rows_not_finite_on_one_rank_have_no_token(cap: int, logits: Tensor) -> None:
    bad, sampling = logits.clone(), sampling_inputs()
    bad[3, 40], bad[4, 7], bad[5] = torch.nan, torch.inf, torch.nan

    def choose(shard: Shard) -> list[Tensor]:
        local, rank = part(bad, shard)
        greedy = ops.sharded_greedy_token(local, rank, 4)
        ids, missed = ops.sharded_sample_token(local, *sampling, rank, 4, cap)
        said = ops.sharded_token_logprobs(local, ids, 2, rank, 4)
        return [greedy, said[0], *ops.redraw([ids, *said, missed, local], sampling, 2, 4)]

    for greedy, _, drawn, logprobs, top_ids, _ in run_ranks(4, choose):
        assert torch.equal(greedy, ops.greedy_token(bad))
        assert (greedy < 0).nonzero().flatten().tolist() == [3, 4, 5]
        assert torch.equal(drawn, ops.sample_token(bad, *sampling))
        assert logprobs[6:].isfinite().all()
        assert torch.equal(top_ids[6:], bad[6:].topk(2).indices)


def test_an_edge_of_the_distribution_is_never_crossed() -> None:
    """Uniforms at 0 and next to 1, and all mass on one rank."""
    peaked = torch.full((2, 8), -torch.inf)
    peaked[:, 5] = 0.0
    uniform = torch.tensor([0.0, 1 - 2**-24])
    sampling = [torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.ones(2), uniform]

    def draw(shard: Shard) -> Tensor:
        local, rank = part(peaked, shard)
        return ops.sharded_sample_token(local.clamp(min=-1e30), *sampling, rank, 4, 2)[0]

    for result in run_ranks(4, draw):
        assert result.tolist() == [5, 5]


@pytest.mark.parametrize("top", [0, 3, VOCABULARY])
def test_log_probabilities_are_those_of_whole_logits(top: int, logits: Tensor) -> None:
    ids = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(2))

    def score(shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        local, rank = part(logits, shard)
        return ops.sharded_token_logprobs(local, ids, top, rank, 4)

    expected = logits.double().log_softmax(-1)
    values, order = expected.topk(top, -1)
    for chosen, top_ids, top_values in run_ranks(4, score):
        torch.testing.assert_close(chosen.double(), expected.gather(-1, ids[:, None])[:, 0], atol=1e-5, rtol=0)
        assert torch.equal(top_ids, order)
        torch.testing.assert_close(top_values.double(), values, atol=1e-5, rtol=0)
