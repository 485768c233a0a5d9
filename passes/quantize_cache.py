"""Keep keys and values in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.kv8 import cache_specs, dequantized
from graph_gemma.passes.framework.contract import Matches, Pass, Tier
from graph_gemma.passes.framework.matches import per_model

_CACHES = slice(3, 5)  # the arguments of attention that are caches


@dataclass(frozen=True)
class QuantizeCache(Pass):
    """With quant.kv8 the KV cache becomes int8.

    Heads come before tokens then, and each cache gets a cache of scales, one per token and head.

    Original: gemma.paged_attention(q, k, v, key_cache, value_cache, ...). After::

        gemma.paged_attention_int8(q, k, v, key_cache, value_cache, key_scales, value_scales, ...)
    """

    name: ClassVar[str] = "quantize_cache"
    tier: ClassVar[Tier] = Tier.QUANTIZING
    matches: ClassVar[Matches] = per_model(lambda counts: counts.attentions)
    after: ClassVar[tuple[str, ...]] = ("paged_attention", "last_token")
    budget: ClassVar[float] = 0.3
    required: ClassVar[bool] = True
    removes: ClassVar[tuple[object, ...]] = (ops.paged_attention,)

    def idle(self, graph: ModelGraph) -> str:
        return "" if graph.quantization is not None and graph.quantization.kv8 else "the cache is not quantized"

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        scales = []
        for cache in candidate.args[_CACHES]:
            assert isinstance(cache, fx.Node)
            specs = cache_specs(tuple(cache.meta["val"].shape))
            with graph.fake_mode:
                cache.meta["val"], fake = (torch.empty(shape, dtype=dtype) for shape, dtype in specs)
            scales.append(graph.add_placeholder(cache.name.replace("cache", "scales"), "cache", fake))
        before, behind = candidate.args[: _CACHES.stop], candidate.args[_CACHES.stop :]
        result = graph.insert(ops.paged_attention_int8, *before, *scales, *behind, at=candidate, **candidate.kwargs)
        candidate.replace_all_uses_with(result)
        graph.graph.erase_node(candidate)

    def earlier_caches(self, caches: list[Tensor], count: int) -> list[Tensor]:
        """Caches come first, then their scales, both in the layers' order."""
        pairs = zip(caches[:count], caches[count:], strict=True)
        return [dequantized(cache, scales) for cache, scales in pairs]
