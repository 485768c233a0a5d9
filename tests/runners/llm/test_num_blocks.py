"""How many blocks the KV cache gets: what is asked for, what fits, and what is said when neither serves."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch

from graph_model.errors import UserError
from graph_model.footprint import cache_token_bytes, weight_bytes
from runners.command_line.entry import compose
from runners.compile import num_scratch_blocks
from runners.llm.load import bucket_table, load_model
from runners.settings.model_settings import resolve_settings

BLOCK = 16
ONE = 16  # blocks of a sequence of max_seq_len
BASE = ["backend=eager", "dtype=float32", f"block_size={BLOCK}", f"max_seq_len={ONE * BLOCK}", "max_batch_size=4"]
Blocks = Callable[..., int]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """The demo's blocks to use, where the free memory holds its weights and `room` blocks (scratch included)."""
    cache = tmp_path_factory.mktemp("cache")

    def call(room: float, *overrides: str, device_memory: float | None = None) -> int:
        settings = resolve_settings(compose("infer", [*BASE, f"cache_dir={cache}", *overrides]))
        block = cache_token_bytes(settings.config, torch.float32) * BLOCK
        memory = weight_bytes(settings.config, torch.float32) + int(room * block)
        monkeypatch.setattr("runners.llm.sizes.free_memory", lambda device: memory)
        with ExitStack() as resources:
            model = load_model(settings, resources, device_memory=device_memory).model
            return model.num_blocks - model.num_scratch_blocks

    return call


def scratch() -> int:
    return num_scratch_blocks(bucket_table(resolve_settings(compose("infer", BASE))), BLOCK)


def test_all_sequences_in_full_length_where_they_fit(blocks: Blocks) -> None:
    assert blocks(scratch() + 4 * ONE, "memory_fraction=1") == 4 * ONE
    assert blocks(10_000, "memory_fraction=1") == 4 * ONE


@pytest.mark.parametrize(
    ("room", "expected"),
    [(4 * ONE - 1, 56), (57, 56), (55, 48), (40, 40), (39, 32), (20, 20), (19, 16), (17, 16), (16, 16)],
)
def test_what_fits_is_rounded_down_to_three_significant_bits(blocks: Blocks, room: int, expected: int) -> None:
    assert blocks(scratch() + room + 0.5, "memory_fraction=1") == expected


def test_rounding_never_takes_the_last_sequence(blocks: Blocks) -> None:
    """17 blocks round down to 16, one sequence of 17 blocks needs them all."""
    assert blocks(scratch() + 17, "memory_fraction=1", f"max_seq_len={17 * BLOCK}") == 17


def test_memory_fraction_is_a_share_of_the_free_memory(blocks: Blocks) -> None:
    whole = 200 + scratch()
    assert blocks(whole, "memory_fraction=1", "max_batch_size=8") == 128
    with pytest.raises(UserError, match=r"memory_fraction: it leaves 0 blocks .* needs 16\. Raise memory_fraction\.$"):
        blocks(whole, "memory_fraction=1e-6")
    with pytest.raises(UserError, match=r"leaves 9 blocks .* Lower max_seq_len to 144, or make memory free\.$"):
        blocks(scratch() + 9, "memory_fraction=1")


def test_more_blocks_than_memory_are_refused_naming_the_most(blocks: Blocks) -> None:
    room = scratch() + 40
    assert blocks(room, "num_blocks=40") == 40
    with pytest.raises(UserError, match="num_blocks is 41; besides the weights there is free memory for at most 40 b"):
        blocks(room, "num_blocks=41")
    with pytest.raises(UserError, match=r"num_blocks is 1000000000; .* at most 0 blocks"):
        blocks(3, "num_blocks=1000000000")


def test_a_cache_that_is_never_made_may_be_of_any_size(blocks: Blocks) -> None:
    """As where the graphs of another machine are lowered here."""
    assert blocks(3, "num_blocks=1000000000", device_memory=math.inf) == 1_000_000_000


def test_too_few_blocks_for_one_sequence_name_both_ways_out(blocks: Blocks) -> None:
    with pytest.raises(UserError, match=r"num_blocks: it leaves 3 .* Lower max_seq_len to 48, or raise num_blocks\.$"):
        blocks(1000, "num_blocks=3")
