"""Smoothing of one decoder layer: its float weights with outliers moved, equal in what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graph_model.config import GemmaConfig
from graph_model.quantizer.ranges import RangeMethod
from graph_model.quantizer.smoothing import migrate_norm, norm_limit, search_migration

_NORMS = {
    "self_attn.q_proj": ("input_layernorm.weight", tuple(f"self_attn.{name}_proj.weight" for name in "qkv")),
    "mlp.gate_proj": ("post_attention_layernorm.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight")),
}


@dataclass(frozen=True)
class SmoothedLayer:
    """weights: the layer's parameters, float32; norms hold numbers of the stored dtype. inputs: what the linears read
    then. strengths: of the migrations, by the linear whose input was smoothed."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    strengths: dict[str, float]


def smooth_layer(
    config: GemmaConfig,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    quantized: set[str],
    dtype: torch.dtype,
    method: RangeMethod,
) -> SmoothedLayer:
    """Smooth the inputs of the layer's `quantized` linears (names within it), as far as that makes them better.

    norm -> query, key, value and gate, up; value -> output; up -> down. The latter two where both are quantized: their
    first weight is scaled by rows, which int8 weights absorb. inputs: see `layers.run_layer`.
    """
    weights, inputs = dict(weights), dict(inputs)
    strengths: dict[str, float] = {}
    for linear, (norm, consumers) in _NORMS.items():
        if linear not in quantized:
            continue
        limit = norm_limit(weights[norm], dtype)
        found = search_migration(inputs[linear], [weights[name] for name in consumers], dtype, method, limit)
        if found.strength is None:
            continue
        migrated, effective = migrate_norm(weights[norm], found.scales, dtype)
        weights[norm] = migrated.float()
        for name in consumers:
            weights[name] = weights[name] * effective
        inputs[linear] = inputs[linear] / effective
        strengths[linear] = found.strength
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    shared = {
        ("self_attn.v_proj", "self_attn.o_proj"): (kv_heads, heads // kv_heads, head_dim),
        ("mlp.up_proj", "mlp.down_proj"): (1, 1, config.intermediate_size),
    }
    for (producer, consumer), groups in shared.items():
        if not quantized.issuperset((producer, consumer)):
            continue
        weight = weights[f"{consumer}.weight"]
        found = search_migration(inputs[consumer], [weight], dtype, method, None, groups)
        if found.strength is None:
            continue
        rows = found.scales.view(groups)[:, 0].flatten()
        for name in (f"{producer}.weight", f"{producer}.bias"):
            if name in weights:
                weights[name] = (weights[name].t() / rows).t()
        weights[f"{consumer}.weight"] = weight * found.scales
        inputs[consumer] = inputs[consumer] / found.scales
        strengths[consumer] = found.strength
    return SmoothedLayer(weights, inputs, strengths)
