"""From settings to a model that runs steps: weights, KV cache, buckets."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from graph_model.backends import select_backend
from graph_model.bucket import BucketTable, powers_of_two
from graph_model.checkpoint import Checkpoint, expected_tensors, open_checkpoint
from graph_model.compile import CompileCache, CompiledModel, Recipe, num_scratch_blocks
from graph_model.config import GemmaConfig
from graph_model.errors import UserError
from graph_model.graph import Pages
from graph_model.quantisation import Quantisation
from graph_model.weights import Read
from passes.manager import build_passes
from runners.memory import free_memory
from runners.random_weights import random_weights
from runners.settings import SMALLEST_CHUNK, ModelSettings

# Block tables are not made narrower than this many tokens: attention over them costs nothing beside the weights.
_NARROWEST_TABLE_TOKENS = 256


@dataclass
class LoadedModel:
    """A model and what it came from."""

    model: CompiledModel
    read: Read
    backend: str  # which backend was taken and why


def load_model(settings: ModelSettings, resources: ExitStack) -> LoadedModel:
    """Build the model; weights are read when its first buckets are warmed up.

    `resources` keeps the checkpoint open. Raises UserError.
    """
    read, quantisation = _reader(settings, resources)
    backend, description = select_backend(
        settings.backend, settings.cache_dir, settings.soc, settings.norm, settings.dump_dir
    )
    buckets = bucket_table(settings)
    dtype = getattr(torch, settings.dtype)
    recipe = Recipe(
        config=settings.config,
        dtype=dtype,
        pages=Pages(_num_blocks(settings, buckets, backend.device), settings.block_size),
        passes=(*build_passes(settings.passes), *backend.kernel_passes(dtype)),
        backend=backend,
        cache=CompileCache(settings.cache_dir),
        dump_dir=settings.dump_dir,
        quantisation=quantisation,
    )
    return LoadedModel(CompiledModel(recipe, buckets, settings.max_seq_len, read), read, description)


def bucket_table(settings: ModelSettings) -> BucketTable:
    """The sizes that steps are padded up to. Rows grow by fours: a padded row costs little beside the weights."""
    blocks = -(-settings.max_seq_len // settings.block_size)
    narrowest = min(blocks, max(1, _NARROWEST_TABLE_TOKENS // settings.block_size))
    return BucketTable(
        batch_sizes=_powers_of_four(settings.max_batch_size),
        prefill_batch_sizes=_powers_of_four(settings.max_prefill_batch_size),
        chunk_lengths=powers_of_two(SMALLEST_CHUNK, settings.max_prefill_tokens),
        table_widths=powers_of_two(narrowest, blocks),
        max_step_tokens=settings.max_prefill_tokens,
    )


def _reader(settings: ModelSettings, resources: ExitStack) -> tuple[Read, Quantisation | None]:
    if settings.random_weights:
        return random_weights(settings.config, settings.quantisation), settings.quantisation
    assert settings.checkpoint_dir is not None
    checkpoint = resources.enter_context(open_checkpoint(settings.checkpoint_dir, settings.config))
    return _one_at_a_time(checkpoint), checkpoint.quantisation or settings.quantisation


def _one_at_a_time(checkpoint: Checkpoint) -> Read:
    """Read tensors, giving back the mapped pages of one when the next is asked for: they count as used memory."""
    last: list[str] = []

    def read(name: str) -> Tensor:
        while last:
            checkpoint.release(last.pop())
        last.append(name)
        return checkpoint.read(name)

    return read


def _num_blocks(settings: ModelSettings, buckets: BucketTable, device: torch.device) -> int:
    """Blocks of the cache, scratch blocks included."""
    scratch = num_scratch_blocks(buckets, settings.block_size)
    per_sequence = -(-settings.max_seq_len // settings.block_size)
    if settings.num_blocks is not None:
        usable, limit = settings.num_blocks, "num_blocks"
    else:
        usable = settings.max_batch_size * per_sequence
        room = _blocks_that_fit(settings, device) - scratch
        limit = "memory_fraction"
        if room < usable:
            # Few significant bits, so that the next start finds the same number and its compiled steps.
            step = 1 << max(0, room.bit_length() - 3)
            usable = room // step * step
    if usable < per_sequence:
        raise UserError(
            f"{limit}: it leaves {max(usable, 0)} blocks of {settings.block_size} tokens for the KV cache, and one "
            f"sequence of max_seq_len={settings.max_seq_len} tokens needs {per_sequence}. Lower max_seq_len to "
            f"{max(usable, 0) * settings.block_size}, or raise {limit}."
        )
    return usable + scratch


def _blocks_that_fit(settings: ModelSettings, device: torch.device) -> int:
    element = torch.empty((), dtype=getattr(torch, settings.dtype)).element_size()
    config = settings.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * element
    room = settings.memory_fraction * free_memory(device) - num_parameters(config) * element
    return max(0, int(room // (token * settings.block_size)))


def num_parameters(config: GemmaConfig) -> int:
    """Parameters of the model, a tied head counted once."""
    return sum(prod(shape) for shape in expected_tensors(config).values())


def _powers_of_four(largest: int) -> tuple[int, ...]:
    return tuple(size for index, size in enumerate(powers_of_two(1, largest)) if index % 2 == 0 or size == largest)
