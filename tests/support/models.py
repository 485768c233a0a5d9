"""Compiled models of random weights, for tests that drive steps."""

from __future__ import annotations

from typing import Any

import torch

from graph_model.backends import Backend
from graph_model.bucket import BucketTable
from graph_model.compile import CompileCache, CompiledModel, Recipe, num_scratch_blocks
from graph_model.config import GemmaConfig
from graph_model.graph import Pages
from graph_model.quantisation import Quantisation
from graph_model.shard import WHOLE, Shard
from passes.manager import PASSES, build_passes
from support.modelslim import quantised_tensors
from support.ranks import part_reader


def build_model(
    backend: Backend,
    reference: torch.nn.Module,
    config: GemmaConfig,
    buckets: BucketTable,
    *,
    num_blocks: int,
    block_size: int = 16,
    max_seq_len: int = 128,
    dtype: torch.dtype = torch.float32,
    cache: CompileCache | None = None,
    shard: Shard = WHOLE,
    quantisation: Quantisation | None = None,
) -> CompiledModel:
    """A CompiledModel with the weights of `reference` (a transformers model), all passes, and `num_blocks` to use.

    quantisation: where it says that the checkpoint is quantised, input ranges are made up.
    """
    scheme = None if quantisation is None else quantisation.scheme
    passes = (*build_passes({name: {} for name in PASSES}, shard), *backend.kernel_passes(dtype, scheme))
    pages = Pages(num_scratch_blocks(buckets, block_size) + num_blocks, block_size)
    recipe = Recipe(config, dtype, pages, passes, backend, cache, quantisation=quantisation, shard=shard)
    weights: dict[str, Any] = reference.state_dict()
    if quantisation is not None and quantisation.stored:
        weights = quantised_tensors(weights, quantisation.linears, scheme, dtype).tensors
    return CompiledModel(recipe, buckets, max_seq_len, part_reader(weights.__getitem__))
