"""Load a model: weights, buckets, passes and backend from the settings."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from graph_gemma.graph_model.checkpoint import Checkpoint, open_checkpoint
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.numerics import is_finite
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import Part, Read
from graph_gemma.passes.pipeline import build_kernel_options, build_passes
from graph_gemma.runners.backends.base import Check
from graph_gemma.runners.backends.select import select_backend
from graph_gemma.runners.compile import CompileCache, CompiledModel, Recipe
from graph_gemma.runners.distributed.leader import LeadingModel, Message
from graph_gemma.runners.io.status import QUIET, Status
from graph_gemma.runners.llm.random_weights import random_weights
from graph_gemma.runners.llm.sizes import bucket_table, size_cache
from graph_gemma.runners.settings.model_settings import ModelSettings


@dataclass
class LoadedModel:
    """A model and what it came from."""

    model: CompiledModel
    read: Read
    backend: str  # which backend was taken and why


def load_model(
    settings: ModelSettings,
    resources: ExitStack,
    check: Check = "no",
    device_memory: float | None = None,
    status: Status = QUIET,
) -> LoadedModel:
    """Build the model; weights are read when its first buckets are warmed up.

    `resources` keeps the checkpoint open. check: whether a backend that can compare its steps with the graphs that
    they were made from does so at every run, and what it does about a difference. device_memory: bytes of the device
    that the KV cache is sized for; None: what is free on this one. status: takes what the model's steps say while they
    are made. Raises UserError.
    """
    shard = _shard(settings)
    read = open_weights(settings, resources)
    backend, description = select_backend(
        settings.backend, settings.cache_dir, settings.soc, settings.norm, settings.dump_dir, check
    )
    if shard.world_size > 1:
        description += f"; {shard.world_size} ranks"
    buckets = bucket_table(settings)
    dtype = getattr(torch, settings.dtype)
    recipe = Recipe(
        config=settings.config,
        dtype=dtype,
        cache_config=size_cache(settings, backend.device, shard, device_memory),
        passes=(
            *build_passes(settings.passes, shard),
            *backend.kernel_passes(dtype, scheme_of(settings.quantization)),
            *build_kernel_options(settings.passes),
        ),
        backend=backend,
        cache=CompileCache(settings.cache_dir, settings.cache_limit),
        dump_dir=settings.dump_dir if shard.rank == 0 else None,
        quantization=settings.quantization,
        shard=shard,
        description=description,
        status=status,
    )
    if shard.world_size == 1 or shard.rank > 0:
        return LoadedModel(CompiledModel(recipe, buckets, settings.max_seq_len, read), read, description)
    leader = LeadingModel(recipe, buckets, settings.max_seq_len, read)
    resources.callback(leader.announce, Message.STOP)
    return LoadedModel(leader, read, description)


def open_weights(settings: ModelSettings, resources: ExitStack) -> Read:
    """A reader of the checkpoint's tensors, which `resources` keeps open, or of random ones."""
    if settings.random_weights:
        return random_weights(settings.config, settings.quantization)
    assert settings.checkpoint_dir is not None
    checkpoint = resources.enter_context(open_checkpoint(settings.checkpoint_dir, settings.config))
    return _one_at_a_time(checkpoint, settings.checkpoint_dir)


def _one_at_a_time(checkpoint: Checkpoint, directory: Path) -> Read:
    """Read tensors, giving back the mapped pages of one when the next is asked for: they count as used memory.

    Raises UserError where a tensor holds NaN or infinity.
    """
    last: list[str] = []

    def read(name: str, part: Part | None = None) -> Tensor:
        while last:
            checkpoint.release(last.pop())
        last.append(name)
        tensor = checkpoint.read(name) if part is None else checkpoint.read_slice(name, *part)
        if not is_finite(tensor):
            raise UserError(
                f"{directory}: the tensor {name} holds NaN or infinite values, so that no answer would mean anything. "
                "The file is damaged, or training or a conversion overflowed: copy it again from the original."
            )
        return tensor

    return read


def _shard(settings: ModelSettings) -> Shard:
    """This process's part of the model."""
    if settings.world_size == 1:
        return WHOLE
    if not dist.is_initialized():
        raise UserError(
            f"world_size is {settings.world_size}, and this process is not one of its ranks. A command in runners/ "
            "starts them, and so does LLM where no launcher has; under torchrun, load the model within on_ranks."
        )
    return Shard(dist.get_rank(), dist.get_world_size())
