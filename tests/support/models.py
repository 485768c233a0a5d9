"""Compiled models of random weights, for tests that drive steps."""

from __future__ import annotations

from typing import Any

import torch

from graph_gemma.graph_model.bucket import BucketTable
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.passes.pipeline import PASSES, build_passes
from graph_gemma.runners.backends.base import Backend
from graph_gemma.runners.compile import CompileCache, CompiledModel, Recipe, num_scratch_blocks
from support.modelslim import quantized_tensors
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
    quantization: Quantization | None = None,
    num_window_blocks: int | None = None,
) -> CompiledModel:
    """A CompiledModel with the weights of `reference` (a transformers model), all passes, and `num_blocks` to use.

    num_window_blocks: to use in layers with a window; None: as many.
    quantization: where it says that the checkpoint is quantized, input ranges are made up.
    """
    kernels = backend.kernel_passes(dtype, scheme_of(quantization))
    passes = (*build_passes({name: {} for name in PASSES}, shard), *kernels)
    scratch = num_scratch_blocks(buckets, block_size)
    in_windows = None if num_window_blocks is None else scratch + num_window_blocks
    cache_config = KVCacheConfig(scratch + num_blocks, block_size, in_windows)
    recipe = Recipe(config, dtype, cache_config, passes, backend, cache, quantization=quantization, shard=shard)
    weights: dict[str, Any] = reference.state_dict()
    if quantization is not None and quantization.stored:
        weights = quantized_tensors(weights, quantization.linears, quantization.scheme, dtype).tensors
    return CompiledModel(recipe, buckets, max_seq_len, part_reader(weights.__getitem__))
