"""Ops that write an input by reference."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_model.ascend.interpreter.ops.checks import require, require_dtype, require_indices, require_same_dtype
from graph_model.ascend.interpreter.registry import ge_op


@ge_op("ScatterPaKvCache", by_reference={0: "key_cache", 1: "value_cache"})
def scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    value: Tensor,
    value_cache: Tensor,
    *,
    cache_mode: str = "Norm",
    scatter_mode: str = "None",
) -> tuple[Tensor, Tensor]:
    """key_cache[slot // block_size, slot % block_size] = key, for every token; the same for values.

    key [tokens, heads, head_dim]; key_cache [blocks, block_size, heads, head_dim]; slot_mapping int [tokens]. Only
    cache_mode "Norm". Slots outside the cache and two equal slots are undefined on the chip and refused.
    Source: prototype of ScatterPaKvCache (ops-transformer), its limits on slot_mapping.
    """
    require(cache_mode == "Norm", f"cache_mode {cache_mode!r}; the interpreter knows 'Norm'")
    require(scatter_mode in ("None", ""), f"scatter_mode {scatter_mode!r}")
    require_dtype("slot_mapping", slot_mapping, torch.int32, torch.int64)
    require_same_dtype(key=key, key_cache=key_cache)
    require_same_dtype(value=value, value_cache=value_cache)
    slots = slot_mapping.long()
    for new, cache in ((key, key_cache), (value, value_cache)):
        require(new.dim() == 3 and cache.dim() == 4, f"key or value of rank {new.dim()}, cache of rank {cache.dim()}")
        require(slots.shape == new.shape[:1], f"slot_mapping {tuple(slots.shape)} for {new.shape[0]} tokens")
        require(new.shape[1:] == cache.shape[2:], f"tokens {tuple(new.shape)} into cache {tuple(cache.shape)}")
        require(cache.is_contiguous(), "the cache is not contiguous")
        require_slots(slots, cache.shape[0] * cache.shape[1])
        cache.view(-1, *cache.shape[2:])[slots] = new
    return key_cache, value_cache


@ge_op("ScatterNdUpdate", by_reference={0: "var"}, ignored=("use_locking",))
def scatter_nd_update(var: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """var[indices[i]] = updates[i]: the last dimension of `indices` addresses var's leading dimensions.

    Addresses outside var and equal addresses are undefined on the chip and refused. Source: prototype, state_ops.h.
    """
    require_dtype("indices", indices, torch.int32, torch.int64)
    require_same_dtype(var=var, updates=updates)
    require(var.is_contiguous(), "var is not contiguous")
    depth = indices.shape[-1]
    leading = var.shape[:depth]
    require(updates.shape == indices.shape[:-1] + var.shape[depth:], f"updates {tuple(updates.shape)}")
    flat = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for dim, size in enumerate(leading):
        require_indices(f"indices[..., {dim}]", indices[..., dim], size)
        flat = flat * size + indices[..., dim]
    rows = flat.reshape(-1)
    require_slots(rows, leading.numel())
    var.view(leading.numel(), *var.shape[depth:])[rows] = updates.reshape(len(rows), *var.shape[depth:])
    return var


@ge_op("Assign", by_reference={0: "ref"}, ignored=("validate_shape", "use_locking"))
def assign(ref: Tensor, value: Tensor) -> Tensor:
    """ref's memory becomes a copy of value."""
    require_same_dtype(ref=ref, value=value)
    require(ref.shape == value.shape, f"Assign of {tuple(value.shape)} to {tuple(ref.shape)}")
    return ref.copy_(value)


def require_slots(slots: Tensor, size: int) -> None:
    require_indices("slot_mapping", slots, size)
    require(slots.unique().numel() == slots.numel(), "two tokens have one slot: undefined on the chip")
