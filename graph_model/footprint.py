"""Compute the bytes of weights and KV cache from the config, before there is a graph.

They are those of the expressions that passes put into graphs, asked of the same places: parameters and their sharding
of the family, quantized linears of the scheme.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from graph_gemma.graph_model.capture import plain_weight
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import Linear, Norm, family_of
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.kv8 import cache_specs
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import CheckpointTensor, Expression, OnePlus


def rank_weights(
    config: GemmaConfig, dtype: torch.dtype, quantization: Quantization | None = None, shard: Shard = WHOLE
) -> list[Expression]:
    """The weights that a rank holds of the checkpoint, each once, before projections are joined.

    Not among them: constants of a step, such as rotary frequencies and masks, and what a chip's kernels need besides.
    """
    family, scheme = family_of(config), scheme_of(quantization)
    quantized = frozenset(() if quantization is None else quantization.linears)

    def plain(name: str, *shape: int) -> Expression:
        return plain_weight(name, shape, dtype, config, quantization)

    def embedding() -> Expression:
        table = plain(family.embedding, config.vocab_size, config.hidden_size)
        return table if shard == WHOLE else table.share(0, *shard.part(config.vocab_size), config.vocab_size)

    def factor(path: str, norm: Norm) -> Expression:
        weight = CheckpointTensor(f"{path}.weight", (norm.size,), dtype)
        return OnePlus(weight) if norm.one_plus else weight

    def linear(linear: Linear) -> Iterator[Expression]:
        scaled = scheme if linear.path in quantized else None
        weight = plain(linear.weight, linear.rows, linear.columns)
        dim, start, stop = shard.part_of(family, linear.path)
        size = weight.shape[dim]
        for each in (weight,) if scaled is None else scaled.weights(linear.path, weight).values():
            yield each if shard == WHOLE else each.share(dim, start, stop, size)
        if linear.bias and not (scaled is not None and scaled.holds_bias):
            bias = plain(f"{linear.path}.bias", linear.rows)
            # Row-parallel layers add it to the ranks' sum.
            yield bias if shard == WHOLE or dim == 1 else bias.share(0, start, stop, size)

    found = [embedding(), *(factor(path, norm) for path, norm in family.norms.items())]
    for group in family.groups:
        if scheme is not None and group.paths[0] in quantized:
            found += scheme.input_weights(group.paths[0]).values()
        for each in group.linears:
            found += linear(each)
    return list(dict.fromkeys(found))


def weight_bytes(
    config: GemmaConfig, dtype: torch.dtype, quantization: Quantization | None = None, shard: Shard = WHOLE
) -> int:
    """Bytes of the model's weights, or of a rank's part of them."""
    weights = rank_weights(config, dtype, quantization, shard)
    return sum(prod(each.shape) * each.dtype.itemsize for each in weights)


def num_parameters(config: GemmaConfig, shard: Shard = WHOLE) -> int:
    """Parameters of the model, or of a rank's part of it; a tied head counted once."""
    return sum(prod(each.shape) for each in rank_weights(config, torch.float32, None, shard))


def pool_token_bytes(
    config: GemmaConfig, dtype: torch.dtype, quantization: Quantization | None = None, shard: Shard = WHOLE
) -> dict[int | None, int]:
    """Bytes that a token takes in each pool of cache blocks, or in a rank's part of it, by the pool's window."""
    family, token = family_of(config), KVCacheConfig(num_blocks=1, block_size=1)
    found = dict.fromkeys(family.pools, 0)
    for index, layer in enumerate(family.layers):
        if family.cache_layer(index) == index:
            shape = token.shape(layer.attention, shard.kv_heads(layer.attention))
            int8 = quantization is not None and quantization.kv8
            specs = cache_specs(shape) if int8 else ((shape, dtype),)
            # Keys and values.
            found[layer.attention.window] += 2 * sum(prod(size) * kind.itemsize for size, kind in specs)
    return found
