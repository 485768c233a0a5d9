"""Bytes of weights and caches before there is a graph: those of the graph that the passes make."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import prod

import pytest
import torch
from support.configs import LATER_CONFIGS, TINY_CONFIGS

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.footprint import num_parameters, pool_token_bytes, rank_weights, weight_bytes
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import SCHEMES, Quantization, select_linears
from graph_gemma.graph_model.quantization.schemes import find_scheme
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import CausalMask, Concat, Constant, Expression, InverseFrequencies
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import PASSES, build_passes

DTYPE = torch.bfloat16
CONFIG = replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1, attention_bias=True)
NUM_BLOCKS = 3
BLOCK_SIZE = 32


def made(config: GemmaConfig, quantization: Quantization | None, shard: Shard) -> ModelGraph:
    """A rank's decode step, after all passes of the default config."""
    graph = capture(config, Bucket("decode", 1, 1, 2), KVCacheConfig(NUM_BLOCKS, BLOCK_SIZE), DTYPE, quantization)
    run_passes(graph, build_passes({name: {} for name in PASSES}, shard))
    return graph


def parts(expression: Expression) -> Iterator[Expression]:
    """What is read of the checkpoint, part by part."""
    if isinstance(expression, Concat):
        for part in expression.parts:
            yield from parts(part)
    elif not isinstance(expression, Constant | InverseFrequencies | CausalMask):
        yield expression


def ways(config: GemmaConfig, scheme: str | None) -> list[Quantization | None]:
    """All linears quantized, and some; as a checkpoint stores them and, where the scheme has that, made at load."""
    if scheme is None:
        return [None]
    stored = [True] if find_scheme(scheme).calibrated else [True, False]
    chosen = (select_linears(config, keep_float) for keep_float in ([], ["down_proj", "lm_head"]))
    return [Quantization(scheme, linears, each) for linears, each in itertools.product(chosen, stored)]


@pytest.mark.parametrize("shard", [WHOLE, Shard(3, 4)], ids=["whole", "rank 3 of 4"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_declared_weights_are_those_of_the_real_plan(scheme: str | None, tied: bool, shard: Shard) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied)
    for how in ways(config, scheme):
        plan = dict.fromkeys(part for e in made(config, how, shard).weight_plan.values() for part in parts(e))
        assert set(rank_weights(config, DTYPE, how, shard)) == set(plan)
        assert weight_bytes(config, DTYPE, how, shard) == sum(prod(e.shape) * e.dtype.itemsize for e in plan)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kv8", [False, True], ids=["float", "kv8"])
def test_declared_caches_are_those_of_the_real_graph(kv8: bool, world_size: int) -> None:
    shard, how = Shard(world_size - 1, world_size), Quantization(None, kv8=True) if kv8 else None
    caches = [node.meta["val"] for node in made(CONFIG, how, shard).placeholders("cache")]
    tokens = NUM_BLOCKS * BLOCK_SIZE
    assert pool_token_bytes(CONFIG, DTYPE, how, shard) == {None: sum(cache.nbytes for cache in caches) // tokens}


def test_caches_are_counted_by_the_windows_of_their_layers() -> None:
    config = LATER_CONFIGS["gemma3"]  # two layers with a window of 24, then a full one; a kv head of 16 numbers
    assert pool_token_bytes(config, DTYPE) == {24: 2 * 2 * 16 * 2, None: 2 * 16 * 2}


def test_parameters_are_counted_once_where_the_head_is_tied() -> None:
    table = CONFIG.vocab_size * CONFIG.hidden_size
    tied, untied = (num_parameters(replace(CONFIG, tie_word_embeddings=tied)) for tied in (True, False))
    assert untied - tied == table
