"""Lower a step of the configured model now, and dump it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from graph_gemma.graph_model.bucket import Bucket, BucketTable
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.footprint import weight_bytes
from graph_gemma.runners.backends.torchair import TorchairBackend
from graph_gemma.runners.compile import Recipe
from graph_gemma.runners.llm.load import load_model
from graph_gemma.runners.llm.sizes import bucket_table
from graph_gemma.runners.settings.declared.inspect_graph import InspectGraphSettings
from graph_gemma.runners.settings.model_settings import ModelSettings, resolve_settings


def dump_step(settings: InspectGraphSettings, context_length: int | None, folder: Path) -> Path:
    """Lower one step on fake tensors; no weight is read. Returns the folder of its dump.

    settings: infer's, and phase, which selects the step. context_length: tokens that a row has blocks for; None: the
    most. folder: for the dump where dump_dir is not set.
    """
    if settings.backend != "torchair":
        raise UserError(f"backend is {settings.backend!r}; only graphs of backend=torchair can be inspected.")
    model_settings = resolve_settings(settings)
    bucket = _bucket(settings.phase, bucket_table(model_settings), model_settings, context_length)
    folder = model_settings.dump_dir or folder
    with ExitStack() as resources:
        recipe = recipe_of(replace(model_settings, dump_dir=folder), resources)
        assert isinstance(recipe.backend, TorchairBackend)
        recipe.backend.lower(recipe.graph(bucket))
    return folder / str(bucket)


def recipe_of(settings: ModelSettings, resources: ExitStack) -> Recipe:
    """The recipe of the model's steps, with a cache for the memory of the chip; nothing is allocated here.

    The weights are not counted: a model that the chip cannot hold is shown all the same.
    """
    assert settings.soc is not None
    weights = weight_bytes(settings.config, getattr(torch, settings.dtype), settings.quantization)
    memory = weights + settings.soc.rates.memory_bytes
    return load_model(replace(settings, memory_fraction=1.0), resources, device_memory=memory).model.recipe


def _bucket(phase: str, table: BucketTable, settings: ModelSettings, context_length: int | None) -> Bucket:
    """The largest step of the phase."""
    if context_length is not None and context_length > settings.max_seq_len:
        raise UserError(
            f"context_length is {context_length}, above max_seq_len={settings.max_seq_len}. Lower it, or raise "
            "max_seq_len."
        )
    blocks = -(-(context_length or settings.max_seq_len) // settings.block_size)
    if phase == "decode":
        return table.choose("decode", settings.max_batch_size, blocks=blocks)
    tokens = table.chunk_lengths[-1]
    rows = max(rows for rows in table.prefill_batch_sizes if table.fits(rows, tokens))
    return table.choose("prefill" if phase == "prefill" else "extend", rows, tokens, blocks)
