"""Size the KV cache: how many blocks fit in memory with the weights."""

from __future__ import annotations

import torch
import torch.distributed as dist

from graph_model.bucket import BucketTable
from graph_model.errors import UserError
from graph_model.footprint import cache_token_bytes, weight_bytes
from graph_model.tensor_parallel import Shard
from runners.backends.memory import free_memory, on_host
from runners.compile import num_scratch_blocks
from runners.settings.model_settings import ModelSettings


def num_blocks(
    settings: ModelSettings, buckets: BucketTable, device: torch.device, shard: Shard, memory: float | None
) -> int:
    """Blocks of the cache, scratch blocks included; the same number on all ranks."""
    scratch = num_scratch_blocks(buckets, settings.block_size)
    if memory is None:
        memory = _memory_of_a_rank(device, shard)
    usable = _affordable_blocks if settings.num_blocks is None else _given_blocks
    blocks = scratch + usable(settings, shard, scratch, memory)
    if shard.world_size > 1:
        fewest = torch.tensor(blocks)
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
        blocks = int(fewest)
    return blocks


def _memory_of_a_rank(device: torch.device, shard: Shard) -> float:
    """Free bytes: ranks share the host's memory, a device's own belongs to one rank."""
    return free_memory(device) / (shard.world_size if on_host(device) else 1)


def _given_blocks(settings: ModelSettings, shard: Shard, scratch: int, memory: float) -> int:
    """The setting num_blocks, which must serve one sequence and fit in the memory, all of it."""
    usable = settings.num_blocks
    assert usable is not None
    if usable < _blocks_of_a_sequence(settings):
        raise _too_few(settings, "num_blocks", usable, "raise num_blocks")
    largest = max(0.0, _blocks_that_fit(settings, shard, memory) - scratch)
    if usable > largest:
        raise UserError(
            f"num_blocks is {usable}; besides the weights there is free memory for at most {int(largest)} blocks "
            f"of {settings.block_size} tokens. Lower num_blocks, or leave it out: memory_fraction then decides."
        )
    return usable


def _affordable_blocks(settings: ModelSettings, shard: Shard, scratch: int, memory: float) -> int:
    """As many as sequences of full length need, or else as memory_fraction allows."""
    one = _blocks_of_a_sequence(settings)
    usable = settings.max_batch_size * one
    room = _blocks_that_fit(settings, shard, settings.memory_fraction * memory) - scratch
    if room >= usable:
        return usable
    if room < one:
        way_out = "raise memory_fraction" if settings.memory_fraction < 1 else "make memory free"
        raise _too_few(settings, "memory_fraction", int(max(room, 0)), way_out)
    # Few significant bits, so that the next start finds the same number and its compiled steps.
    step = 1 << max(0, int(room).bit_length() - 3)
    return max(one, int(room) // step * step)


def _blocks_of_a_sequence(settings: ModelSettings) -> int:
    return -(-settings.max_seq_len // settings.block_size)


def _too_few(settings: ModelSettings, limit: str, usable: int, way_out: str) -> UserError:
    shorter = f"Lower max_seq_len to {usable * settings.block_size}, or {way_out}" if usable else way_out.capitalize()
    return UserError(
        f"{limit}: it leaves {usable} blocks of {settings.block_size} tokens for the KV cache, and one sequence of "
        f"max_seq_len={settings.max_seq_len} tokens needs {_blocks_of_a_sequence(settings)}. {shorter}."
    )


def _blocks_that_fit(settings: ModelSettings, shard: Shard, memory: float) -> float:
    """Blocks that fit in so many bytes with the weights, as a fraction."""
    model = settings.config, getattr(torch, settings.dtype), settings.quantization, shard
    token = cache_token_bytes(*model)
    room = memory - weight_bytes(*model)
    return max(0.0, room / (token * settings.block_size))
