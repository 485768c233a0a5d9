"""Layers with a window get a pool of blocks of their own, as large as the sequences that run at once need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.configs import LATER_CONFIGS

from graph_gemma.graph_model.errors import NoMemoryError
from graph_gemma.graph_model.footprint import pool_token_bytes, weight_bytes
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.tensor_parallel import WHOLE
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.compile import num_scratch_blocks
from graph_gemma.runners.engine import SamplingParams
from graph_gemma.runners.engine.model import window_blocks
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.llm.report import print_report
from graph_gemma.runners.llm.sizes import bucket_table, size_cache
from graph_gemma.runners.llm.step_memory import step_bytes
from graph_gemma.runners.settings.model_settings import ModelSettings, resolve_settings

CPU, PLENTY = torch.device("cpu"), 1e15


def settings_of(model: str, *overrides: str) -> ModelSettings:
    base = [f"model={model}", "weights=random", "backend=eager", "dtype=bfloat16", "memory_fraction=1"]
    return resolve_settings(compose("infer", [*base, *overrides]))


def cache_bytes(settings: ModelSettings, cache: KVCacheConfig) -> int:
    tokens = pool_token_bytes(settings.config, torch.bfloat16, settings.quantization)
    return sum(cache.blocks(window) * cache.block_size * token for window, token in tokens.items())


def test_a_32k_sequence_takes_a_quarter_of_full_caches() -> None:
    """All that is allocated for it, but for the scratch blocks: 0.22 of what caches of full length would take."""
    settings = settings_of("gemma3_4b", "max_seq_len=32768", "max_batch_size=1", "max_prefill_batch_size=1")
    cache = size_cache(settings, CPU, WHOLE, PLENTY)
    scratch = num_scratch_blocks(bucket_table(settings), settings.block_size)
    assert cache.num_blocks - scratch == 32768 // settings.block_size
    token = sum(pool_token_bytes(settings.config, torch.bfloat16).values())
    share = cache_bytes(settings, cache) - scratch * settings.block_size * token
    assert share <= 0.25 * 32768 * token


def test_the_window_pool_holds_what_runs_at_once() -> None:
    settings = settings_of("gemma3_1b", "max_seq_len=8192", "max_batch_size=6", "max_prefill_batch_size=2")
    cache, table = size_cache(settings, CPU, WHOLE, PLENTY), bucket_table(settings)
    scratch = num_scratch_blocks(table, settings.block_size)
    decoding, prefilling = (
        window_blocks(512, tokens, settings.block_size, 8192) for tokens in (1, table.chunk_lengths[-1])
    )
    assert decoding == 512 // settings.block_size + 1
    assert cache.num_window_blocks == scratch + 6 * decoding + 2 * prefilling
    assert cache.num_blocks == scratch + 6 * 8192 // settings.block_size


@pytest.mark.parametrize("model", ["gemma2_2b", "gemma3_1b"])
def test_short_sequences_have_as_many_blocks_in_both_pools(model: str) -> None:
    """A sequence that fits in the window holds all its blocks in both."""
    settings = settings_of(model, "max_seq_len=256", "max_batch_size=4", "max_prefill_batch_size=1")
    cache = size_cache(settings, CPU, WHOLE, PLENTY)
    assert cache.num_window_blocks == cache.num_blocks


def test_a_model_without_windows_has_one_pool() -> None:
    settings = settings_of("gemma_2b", "max_seq_len=512")
    cache = size_cache(settings, CPU, WHOLE, PLENTY)
    assert cache.num_window_blocks is None
    assert list(pool_token_bytes(settings.config, torch.bfloat16)) == [None]


@pytest.mark.parametrize("blocks", [520, 1100, 1800])
def test_memory_is_counted_for_both_pools(blocks: int) -> None:
    """Fewer blocks than the window pool takes, and more: they are given if they fit beside weights and steps."""

    def settings(number: int) -> ModelSettings:
        sizes = ["max_seq_len=8192", "max_batch_size=8", "max_prefill_batch_size=2", "block_size=16"]
        return settings_of("gemma3_1b", *sizes, f"num_blocks={number}")

    chosen = settings(blocks)
    cache = size_cache(chosen, CPU, WHOLE, PLENTY)
    others = weight_bytes(chosen.config, torch.bfloat16)
    others += step_bytes(bucket_table(chosen), chosen.config.vocab_size, windowed=True)
    needed = others + cache_bytes(chosen, cache)
    assert size_cache(chosen, CPU, WHOLE, needed + 8) == cache
    with pytest.raises(NoMemoryError, match=f"num_blocks is {blocks}; .* at most {blocks - 1} blocks"):
        size_cache(chosen, CPU, WHOLE, needed - 8)


def test_memory_fraction_leaves_room_for_both_pools() -> None:
    settings = settings_of("gemma3_1b", "max_seq_len=8192", "max_batch_size=16", "block_size=16")
    others = weight_bytes(settings.config, torch.bfloat16)
    others += step_bytes(bucket_table(settings), settings.config.vocab_size, windowed=True)
    whole = cache_bytes(settings, size_cache(settings, CPU, WHOLE, PLENTY))
    for share in (0.4, 0.6, 0.9):
        found = cache_bytes(settings, size_cache(settings, CPU, WHOLE, others + share * whole))
        assert 0.8 * share * whole < found <= share * whole, "rounded to three bits"


def test_the_report_prints_the_plan_of_each_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path / "model", LATER_CONFIGS["gemma3"])
    sizes = [
        "max_seq_len=128",
        "max_batch_size=1",
        "max_prefill_batch_size=1",
        "max_prefill_tokens=64",
        "block_size=16",
    ]
    with LLM([f"model.path={tmp_path / 'model'}", "backend=eager", f"cache_dir={tmp_path}", *sizes]) as llm:
        results = llm.generate([[7] * 60], SamplingParams(max_new_tokens=4, ignore_eos=True))
        print_report(llm, results)
    # Layers 0, 1 of the three slide; a token takes 2 x 1 head x 16 numbers of 4 bytes in each.
    plan = """
KV cache:            4 of 8 blocks used, 0 preemptions
                     0.1 kB per token, 0.0 MB per sequence of 128
KV cache, windows:   4 of 8 blocks used
                     0.3 kB per token, 0.0 MB per sequence of 128 in layers with a window of 24
"""
    assert plan in capsys.readouterr().out
