"""Ops that write an input by reference: ScatterPaKvCache, ScatterNdUpdate, DynamicQuantUpdateScatter, Assign."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    require,
    require_dtype,
    require_indices,
    require_same_dtype,
    require_value,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op


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


@ge_op("DynamicQuantUpdateScatter", by_reference={0: "var", 1: "var_scale"})
def dynamic_quant_update_scatter(
    var: Tensor,
    var_scale: Tensor,
    indices: Tensor,
    updates: Tensor,
    smooth_scales: Tensor | None = None,
    *,
    reduce: str,
    axis: int = 0,
) -> tuple[Tensor, Tensor]:
    """DynamicQuant of each row of `updates`; int8 and scales go to where indices [n, 2] says: of axis 0 and of -2.

    var [a, ..., b, size] int8, var_scale [a, ..., b, 1] fp32, updates [n, ..., m, size]. f = 127 / max|row|, the
    integers are row * f rounded to even, the scale is 1 / f; a row of zeros has zeros for both. Places outside var and
    overlapping places are undefined on the chip and refused. Source: ops-nn quant/dynamic_quant_update_scatter, its
    README, prototype and golden.py.
    """
    require((reduce, axis) == ("update", -2), f"reduce {reduce!r}, axis {axis}; the chip knows 'update' and -2")
    require(smooth_scales is None, "smooth_scales")
    require_dtype("var", var, torch.int8)
    require_dtype("var_scale", var_scale, torch.float32)
    require_dtype("updates", updates, torch.float16, torch.bfloat16)
    require_dtype("indices", indices, torch.int32, torch.int64)
    require(indices.dim() == 2 and indices.shape == (updates.shape[0], 2), f"indices {tuple(indices.shape)}")
    require(var.is_contiguous() and var_scale.is_contiguous(), "var or var_scale is not contiguous")
    require(
        tuple(var_scale.shape) == (*var.shape[:-1], 1), f"var_scale {tuple(var_scale.shape)} for {tuple(var.shape)}"
    )
    require(var.shape[1:-2] == updates.shape[1:-2] and var.shape[-1] == updates.shape[-1], "updates unlike var")
    require(var.shape[-1] % 32 == 0, f"a last axis of {var.shape[-1]} bytes; it is a multiple of 32")
    require(updates.shape[0] <= var.shape[0], f"{updates.shape[0]} updates, var has {var.shape[0]}")
    count = updates.shape[-2]
    require_indices("indices[:, 0]", indices[:, 0], var.shape[0])
    require_indices("indices[:, 1]", indices[:, 1], var.shape[-2] - count + 1)
    positions = indices[:, 1:].long() + torch.arange(count)  # [n, m]
    require_slots((indices[:, :1].long() * var.shape[-2] + positions).reshape(-1), var.shape[0] * var.shape[-2])
    wide = updates.float()
    largest = wide.abs().amax(-1, keepdim=True)
    factor = torch.where(largest > 0, 127.0 / largest, 0.0)
    scale = torch.where(largest > 0, 1.0 / factor, 0.0)
    first = indices[:, 0].long()[:, None].expand_as(positions)
    var.movedim(-2, 1)[first, positions] = (wide * factor).round().clamp(-128, 127).to(torch.int8).movedim(-2, 1)
    var_scale.movedim(-2, 1)[first, positions] = scale.movedim(-2, 1)
    return var, var_scale


@ge_op("Assign", by_reference={0: "ref"}, ignored=("use_locking",))
def assign(ref: Tensor, value: Tensor, *, validate_shape: bool = True) -> Tensor:
    """ref's memory becomes a copy of value."""
    require_value("validate_shape", validate_shape, True)
    require_same_dtype(ref=ref, value=value)
    require(ref.shape == value.shape, f"Assign of {tuple(value.shape)} to {tuple(ref.shape)}")
    return ref.copy_(value)


def require_slots(slots: Tensor, size: int) -> None:
    require_indices("slot_mapping", slots, size)
    require(slots.unique().numel() == slots.numel(), "two tokens have one slot: undefined on the chip")
