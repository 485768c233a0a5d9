"""kv8: keys and values in int8, each head of a token with a float32 scale, as `ops.quantize_rows` quantizes it."""

from __future__ import annotations

import torch
from torch import Tensor

ASCEND_OPS = ("FusedInferAttentionScore", "DynamicQuantUpdateScatter")  # that a chip needs to have for it

CacheSpec = tuple[tuple[int, ...], torch.dtype]  # shape and dtype


def cache_specs(shape: tuple[int, ...]) -> tuple[CacheSpec, CacheSpec]:
    """The int8 cache and its scales in place of a floating-point one [blocks, block_size, heads, head_dim].

    Heads come before tokens, as kernels for int8 caches ask for.
    """
    blocks, block_size, heads, head_dim = shape
    return ((blocks, heads, block_size, head_dim), torch.int8), ((blocks, heads, block_size), torch.float32)


def dequantized(values: Tensor, scales: Tensor) -> Tensor:
    """The float32 cache that an int8 one stands for, [blocks, block_size, heads, head_dim]."""
    return (values.float() * scales[..., None]).transpose(1, 2).contiguous()
