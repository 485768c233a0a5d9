"""Bytes of weights and KV cache, and how many blocks of the cache fit beside the weights."""

from __future__ import annotations

from math import prod

import torch
import torch.distributed as dist

from graph_model.bucket import BucketTable
from graph_model.checkpoint import expected_tensors
from graph_model.config import GemmaConfig
from graph_model.errors import UserError
from graph_model.families import family_of
from graph_model.quantization.linears import Quantization
from graph_model.tensor_parallel import WHOLE, Shard
from runners.backends.memory import free_memory, on_host
from runners.compile import num_scratch_blocks
from runners.settings import ModelSettings

_SCALE_BYTES = 4  # of a token and head in an int8 cache, of a row of int8 weights


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
            f"num_blocks is {usable}; beside the weights there is free memory for at most {int(largest)} blocks "
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
    """Blocks that so many bytes hold beside the weights; whole ones and a part."""
    element = torch.empty((), dtype=getattr(torch, settings.dtype)).element_size()
    config = settings.config
    token = cache_token_bytes(config, element, settings.quantization, shard)
    room = memory - weight_bytes(config, element, settings.quantization, shard)
    return max(0.0, room / (token * settings.block_size))


def cache_token_bytes(
    config: GemmaConfig, element: int, quantization: Quantization | None = None, shard: Shard = WHOLE
) -> int:
    """Bytes that a token takes in the KV cache, or in a rank's part of it. element: bytes of a number in it."""
    int8 = quantization is not None and quantization.kv8
    family = family_of(config)
    own = [layer.attention for index, layer in enumerate(family.layers) if family.cache_layer(index) == index]
    return sum(2 * shard.kv_heads(a) * (a.head_dim + _SCALE_BYTES if int8 else a.head_dim * element) for a in own)


def weight_bytes(
    config: GemmaConfig, element: int, quantization: Quantization | None = None, shard: Shard = WHOLE
) -> int:
    """Bytes of the model's weights, or of a rank's part of them. element: bytes of a floating-point number.

    A quantized linear has a byte per weight, and a scale (with w8a8 an integer bias too) of 4 bytes per row. A tied
    head that is quantized is held beside the embedding.
    """
    total = num_parameters(config, shard) * element
    shapes = expected_tensors(config)
    for path in quantization.linears if quantization is not None else ():
        name = f"{path}.weight"
        rows, columns = shapes.get(name, (config.vocab_size, config.hidden_size))
        own = rows * columns * _share(name, config, shard) // shard.world_size
        per_row = 2 * _SCALE_BYTES if quantization is not None and quantization.scheme == "w8a8" else _SCALE_BYTES
        total += own + rows * per_row - (own * element if name in shapes else 0)
    return total


def num_parameters(config: GemmaConfig, shard: Shard = WHOLE) -> int:
    """Parameters of the model, or of a rank's part of it; a tied head counted once."""
    return sum(
        prod(shape) * _share(name, config, shard) // shard.world_size
        for name, shape in expected_tensors(config).items()
    )


def _share(name: str, config: GemmaConfig, shard: Shard) -> int:
    """How many of `world_size` equal parts of a tensor a rank holds."""
    family = family_of(config)
    path, _, kind = name.rpartition(".")
    if name == family.embedding:
        return 1
    linear = family.linears.get(path)
    if linear is None or (linear.split == "row" and kind == "bias"):
        return shard.world_size
    if linear.split == "kv":
        attention = family.layers[family.layer_index(path) or 0].attention
        return shard.kv_heads(attention) * shard.world_size // attention.kv_heads
    return 1
