"""Smooth one decoder layer: outliers of activations move into its float weights, which compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graph_gemma.graph_model.families import Layer
from graph_gemma.graph_model.quantizer.ranges import RangeMethod
from graph_gemma.graph_model.quantizer.smoothing import migrate_norm, norm_limit, search_migration


@dataclass(frozen=True)
class SmoothedLayer:
    """A layer's parameters after smoothing, and what its linears read then."""

    weights: dict[str, Tensor]  # float32; norms have numbers of the stored dtype
    inputs: dict[str, Tensor]  # by the linear
    strengths: dict[str, float]  # of the migrations, by the linear whose input was smoothed


def smooth_layer(
    layer: Layer,
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
    offsets = {norm.path: float(norm.one_plus) for norm in layer.norms}
    for group in layer.groups:
        linear, norm = group.paths[0], f"{group.norm}.weight"
        if linear not in quantized or not group.norm:
            continue
        consumers = [each.weight for each in group.linears]
        offset = offsets[group.norm]
        limit = norm_limit(weights[norm], offset, dtype)
        found = search_migration(inputs[linear], [weights[name] for name in consumers], dtype, method, limit)
        if found.strength is None:
            continue
        migrated, effective = migrate_norm(weights[norm], offset, found.scales, dtype)
        weights[norm] = migrated.float()
        for name in consumers:
            weights[name] = weights[name] * effective
        inputs[linear] = inputs[linear] / effective
        strengths[linear] = found.strength
    for group in layer.groups:
        consumer, upstream = group.paths[0], group.upstream
        if upstream is None or not quantized.issuperset((upstream.path, consumer)):
            continue
        weight = weights[f"{consumer}.weight"]
        found = search_migration(inputs[consumer], [weight], dtype, method, None, upstream.groups)
        if found.strength is None:
            continue
        rows = found.scales.view(upstream.groups)[:, 0].flatten()
        for name in (f"{upstream.path}.weight", f"{upstream.path}.bias"):
            if name in weights:
                weights[name] = (weights[name].t() / rows).t()
        weights[f"{consumer}.weight"] = weight * found.scales
        inputs[consumer] = inputs[consumer] / found.scales
        strengths[consumer] = found.strength
    return SmoothedLayer(weights, inputs, strengths)
