"""Size steps and the KV cache: what is compiled, and how many blocks fit in memory with the weights."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from graph_gemma.graph_model.bucket import BucketTable, powers_of_two, round_up
from graph_gemma.graph_model.errors import NoMemoryError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.footprint import pool_token_bytes, weight_bytes
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.runners.backends.memory import free_memory
from graph_gemma.runners.compile import num_scratch_blocks
from graph_gemma.runners.engine.model import window_blocks
from graph_gemma.runners.llm.step_memory import check_step_sizes, step_bytes
from graph_gemma.runners.settings.declared.infer import SMALLEST_CHUNK
from graph_gemma.runners.settings.model_settings import ModelSettings

# Block tables are not made narrower than this many tokens: attention over them costs nothing next to the weights.
_NARROWEST_TABLE_TOKENS = 256


def bucket_table(settings: ModelSettings) -> BucketTable:
    """The sizes that steps are padded up to. Rows grow by fours: a padded row costs little next to the weights."""
    blocks = _blocks_of_a_sequence(settings)
    narrowest = min(blocks, max(1, _NARROWEST_TABLE_TOKENS // settings.block_size))
    # No prompt is longer than max_seq_len, whatever max_prefill_tokens allows.
    chunks = powers_of_two(SMALLEST_CHUNK, settings.max_prefill_tokens)
    longest = round_up(min(settings.max_seq_len, chunks[-1]), chunks)
    return BucketTable(
        batch_sizes=_powers_of_four(settings.max_batch_size),
        prefill_batch_sizes=_powers_of_four(settings.max_prefill_batch_size),
        chunk_lengths=tuple(chunk for chunk in chunks if chunk <= longest),
        table_widths=powers_of_two(narrowest, blocks),
        max_step_tokens=min(settings.max_prefill_tokens, settings.max_prefill_batch_size * longest),
    )


def _powers_of_four(largest: int) -> tuple[int, ...]:
    return tuple(size for index, size in enumerate(powers_of_two(1, largest)) if index % 2 == 0 or size == largest)


def size_cache(settings: ModelSettings, device: torch.device, shard: Shard, memory: float | None) -> KVCacheConfig:
    """Blocks of the KV cache, scratch blocks included; the same numbers on all ranks.

    The setting num_blocks, or what memory_fraction allows, is of layers that see all tokens. Layers with a window have
    as many, or fewer where all sequences that run at once can never hold so many.
    """
    if memory is None:
        memory = free_memory(device, shard.world_size)
    count = _affordable_blocks if settings.num_blocks is None else _given_blocks
    usable = count(settings, shard, memory)
    if shard.world_size > 1:
        fewest = torch.tensor(usable)
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
        usable = int(fewest)
    scratch, in_windows = _scratch_blocks(settings), _most_window_blocks(settings)
    return KVCacheConfig(
        scratch + usable,
        settings.block_size,
        None if in_windows is None else scratch + min(usable, in_windows),
    )


def _given_blocks(settings: ModelSettings, shard: Shard, memory: float) -> int:
    """The setting num_blocks, which must serve one sequence and fit in the memory, all of it."""
    usable = settings.num_blocks
    assert usable is not None
    if usable < _blocks_of_a_sequence(settings):
        raise _too_few(settings, "num_blocks", usable, "raise num_blocks")
    room = _room(settings, shard, memory, usable)
    if usable > room:
        raise NoMemoryError(
            f"num_blocks is {usable}; besides the weights there is free memory for at most {max(0, int(room))} blocks "
            f"of {settings.block_size} tokens. Lower num_blocks, or leave it out: memory_fraction then decides."
        )
    return usable


def _affordable_blocks(settings: ModelSettings, shard: Shard, memory: float) -> int:
    """As many as sequences of full length need, or else as memory_fraction allows."""
    one = _blocks_of_a_sequence(settings)
    usable = settings.max_batch_size * one
    room = _room(settings, shard, settings.memory_fraction * memory, one)
    if room >= usable:
        return usable
    if room < one:
        way_out = "raise memory_fraction" if settings.memory_fraction < 1 else "make memory free"
        raise _too_few(settings, "memory_fraction", int(max(room, 0)), way_out)
    # Few significant bits, so that the next start finds the same number and its compiled steps.
    step = 1 << max(0, int(room).bit_length() - 3)
    return max(one, int(room) // step * step)


def _room(settings: ModelSettings, shard: Shard, memory: float, needed: int) -> float:
    """Blocks, whole ones and a part, that `memory` has besides weights and what the largest steps take.

    needed: blocks without which nothing runs. Raises NoMemoryError if it is the steps' size that leaves none.
    """
    model = settings.config, getattr(torch, settings.dtype), settings.quantization, shard
    pools = {window: number * settings.block_size for window, number in pool_token_bytes(*model).items()}
    full, both = pools.get(None, 0), sum(pools.values())
    free = memory - weight_bytes(*model)

    def left(settings: ModelSettings) -> float:
        steps = step_bytes(bucket_table(settings), settings.config.vocab_size, both > full)
        blocks = (free - steps) / both - _scratch_blocks(settings)  # with as many in each pool
        most = _most_window_blocks(settings)
        if most is None or blocks <= most:
            return blocks
        return most + (blocks - most) * both / full if full else math.inf

    check_step_sizes(settings, left, needed)
    return left(settings)


def _scratch_blocks(settings: ModelSettings) -> int:
    return num_scratch_blocks(bucket_table(settings), settings.block_size)


def _most_window_blocks(settings: ModelSettings) -> int | None:
    """Blocks of layers with a window that all sequences hold which run at once; None: no layer has a window."""
    window = family_of(settings.config).window
    if window is None:
        return None
    decoding, prefilling = (
        window_blocks(window, tokens, settings.block_size, settings.max_seq_len)
        for tokens in (1, bucket_table(settings).chunk_lengths[-1])
    )
    return settings.max_batch_size * decoding + settings.max_prefill_batch_size * prefilling


def _blocks_of_a_sequence(settings: ModelSettings) -> int:
    return -(-settings.max_seq_len // settings.block_size)


def _too_few(settings: ModelSettings, limit: str, usable: int, way_out: str) -> NoMemoryError:
    shorter = f"Lower max_seq_len to {usable * settings.block_size}, or {way_out}" if usable else way_out.capitalize()
    return NoMemoryError(
        f"{limit}: it leaves {usable} blocks of {settings.block_size} tokens for the KV cache, and one sequence of "
        f"max_seq_len={settings.max_seq_len} tokens needs {_blocks_of_a_sequence(settings)}. {shorter}."
    )
