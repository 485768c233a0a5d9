"""How many blocks the KV cache gets: what is asked for, what fits, and what is said when neither serves."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from graph_gemma.graph_model.errors import NoMemoryError
from graph_gemma.graph_model.footprint import pool_token_bytes, weight_bytes
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.compile import num_scratch_blocks
from graph_gemma.runners.llm.load import load_model
from graph_gemma.runners.llm.sizes import bucket_table
from graph_gemma.runners.llm.step_memory import step_bytes
from graph_gemma.runners.settings.model_settings import resolve_settings

BLOCK = 16
ONE = 16  # blocks of a sequence of max_seq_len
BASE = ["backend=eager", "dtype=float32", f"block_size={BLOCK}", f"max_seq_len={ONE * BLOCK}", "max_batch_size=4"]
MEMORY = 64e6  # bytes, of which the weights take 12 MB
ROOT = Path(__file__).parents[3]
Blocks = Callable[..., int]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """The demo's blocks to use, where the free memory holds its weights and `room` blocks (scratch included)."""
    cache = tmp_path_factory.mktemp("cache")

    def call(room: float, *overrides: str, device_memory: float | None = None) -> int:
        settings = resolve_settings(compose("infer", [*BASE, f"cache_dir={cache}", *overrides]))
        block = sum(pool_token_bytes(settings.config, torch.float32).values()) * BLOCK
        steps = step_bytes(bucket_table(settings), settings.config.vocab_size, windowed=False)
        beside = weight_bytes(settings.config, torch.float32) + steps
        memory = beside + int(room * block)
        monkeypatch.setattr("graph_gemma.runners.llm.sizes.free_memory", lambda device, processes: memory)
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
    with pytest.raises(
        NoMemoryError, match=r"memory_fraction: it leaves 0 blocks .* needs 16\. Raise memory_fraction\.$"
    ):
        blocks(whole, "memory_fraction=1e-6")
    with pytest.raises(NoMemoryError, match=r"leaves 9 blocks .* Lower max_seq_len to 144, or make memory free\.$"):
        blocks(scratch() + 9, "memory_fraction=1")


def test_more_blocks_than_memory_are_refused_naming_the_most(blocks: Blocks) -> None:
    room = scratch() + 40
    assert blocks(room, "num_blocks=40") == 40
    with pytest.raises(
        NoMemoryError, match="num_blocks is 41; besides the weights there is free memory for at most 40 b"
    ):
        blocks(room, "num_blocks=41")
    with pytest.raises(NoMemoryError, match=r"num_blocks is 1000000000; .* at most 0 blocks"):
        blocks(3, "num_blocks=1000000000")


def test_too_few_blocks_for_one_sequence_name_both_ways_out(blocks: Blocks) -> None:
    with pytest.raises(
        NoMemoryError, match=r"num_blocks: it leaves 3 .* Lower max_seq_len to 48, or raise num_blocks\.$"
    ):
        blocks(1000, "num_blocks=3")


@pytest.mark.parametrize("num_blocks", ["null", "64"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch_size", 100_000), ("max_batch_size", 2**63 - 1), ("max_prefill_batch_size", 2**63 - 1)],
)
def test_steps_too_large_for_memory_name_their_setting(blocks: Blocks, name: str, value: int, num_blocks: str) -> None:
    """And the largest value that fits: it is taken, the next one is not."""

    def call(value: int) -> int:
        return blocks(5000, f"{name}={value}", "memory_fraction=1", f"num_blocks={num_blocks}", device_memory=MEMORY)

    with pytest.raises(
        NoMemoryError, match=rf"^{name} is {value}: .* no memory .* Give at most {name}=\d+\.$"
    ) as refused:
        call(value)
    largest = int(re.findall(r"\d+", str(refused.value))[-1])
    assert call(largest) >= ONE
    if num_blocks == "null":
        with pytest.raises(NoMemoryError, match=f"Lower max_seq_len|Give at most {name}={largest}"):
            call(largest + largest // 100)


def test_long_prompt_steps_name_their_setting(blocks: Blocks) -> None:
    """A model with many positions may be asked for steps that no memory has room for."""
    sizes = ["max_seq_len=1024", "max_prefill_batch_size=1000", "memory_fraction=1", "num_blocks=64"]
    assert blocks(0, *sizes, device_memory=MEMORY) == 64
    with pytest.raises(NoMemoryError, match=r"max_prefill_batch_size=\d+ or max_prefill_tokens=\d+\.$"):
        blocks(0, *sizes, "max_prefill_tokens=640000", device_memory=MEMORY)


def test_several_settings_at_fault_are_all_named(blocks: Blocks) -> None:
    absurd = ["max_batch_size=1000000", "max_prefill_batch_size=1000000"]
    with pytest.raises(
        NoMemoryError, match=r"^max_batch_size is 1000000 and max_pref.*=\d+ and max_prefill_batch_size=\d"
    ):
        blocks(0, *absurd, "memory_fraction=1", device_memory=MEMORY)


def test_prompt_steps_are_no_larger_than_prompts() -> None:
    """What max_prefill_tokens allows beyond that takes no memory."""
    large, enough = (
        bucket_table(resolve_settings(compose("infer", [*BASE, f"max_prefill_tokens={tokens}"])))
        for tokens in (6_400_000, 4 * ONE * BLOCK)
    )
    assert large == enough
    assert (large.chunk_lengths, large.max_step_tokens) == ((64, 128, 256), 1024)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["max_batch_size=1000000000", "max_prefill_batch_size=100000000"])
def test_absurd_sizes_are_refused_in_little_memory(setting: str, tmp_path: Path) -> None:
    """Before anything of that size is built: the command ends with its message within 4 GB of address space."""
    settings = ["backend=eager", "verbosity=0", f"cache_dir={tmp_path}", setting]
    command = [sys.executable, str(ROOT / "runners/infer.py"), *settings]
    limit = 4 << 30
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {setting.partition('=')[0]} is ")
