"""Lower any rank's graph of any world size in one process, without its weights: compile checks and estimates."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.distributed as dist

from graph_gemma.graph_model.ascend.ge_graph import GeGraph
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.bucket import Bucket, pool_input
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization, linear_paths
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.printer import count_nodes, is_collective
from graph_gemma.runners.backends.ascend.roofline import estimate


@dataclass(frozen=True)
class RankSummary:
    """One rank's step of a whole model, extended from graphs of few layers."""

    nodes_per_layer: int  # GE nodes of a decoder layer, of the kind that has most, collectives included
    collectives: dict[str, int]  # of the whole step, by GE type
    weight_bytes: int  # of the rank
    kv_bytes: int  # of the caches of layers that see all tokens, per token
    window_bytes: int  # of the caches of layers with a window: what the rows of the step hold there
    seconds: float  # the roofline estimate of the step, without launches and synchronization

    def kv_tokens(self, soc: Chip, memory_fraction: float) -> int:
        """Tokens of KV cache that fit into a share of the chip's memory, with the weights and the rows' windows."""
        room = memory_fraction * soc.rates.memory_bytes - self.weight_bytes - self.window_bytes
        return max(0, int(room // self.kv_bytes))


@dataclass(frozen=True)
class RankStep:
    """One rank's lowered step."""

    nodes: int  # that run
    copies: int  # of caches or weights, at run time
    collectives: dict[str, int]  # by GE type
    weight_bytes: int
    kv_bytes: int  # see RankSummary
    window_bytes: int
    seconds: float  # see RankSummary


@dataclass(frozen=True)
class RankCase:
    """A rank's step that is to be lowered; torch_npu must be loaded for `soc`, with no process group in existence."""

    config: GemmaConfig
    soc: Chip
    dtype: torch.dtype
    bucket: Bucket
    cache_config: KVCacheConfig
    passes: Sequence[Pass]  # all of them, built for `shard`
    shard: Shard
    quantization: Quantization | None = None

    def measure(self) -> RankStep:
        """Lower the graph of `config` as it is. Raises GeGraphError or UserError if the chip does not take it."""
        with fake_group(self.shard):
            graph = capture(self.config, self.bucket, self.cache_config, self.dtype, self.quantization)
            run_passes(graph, self.passes)
            lowered = lower(graph).graph
        check_graph(lowered, self.soc)
        counts, window = count_nodes(lowered), graph.family.window
        return RankStep(
            nodes=counts.compute,
            copies=counts.copies["TensorMove"] + counts.copies["Assign"] + counts.weight_copies,
            collectives=dict(collectives(lowered)),
            weight_bytes=sum(prod(e.shape) * e.dtype.itemsize for e in dict.fromkeys(graph.weight_plan.values())),
            kv_bytes=_token_bytes(graph, None),
            window_bytes=0 if window is None else self.bucket.batch * window * _token_bytes(graph, window),
            seconds=estimate(lowered, self.soc).total_s,
        )

    def summarize(self) -> RankSummary:
        """Sum up what the step costs, from graphs of few layers; errors as of `measure`.

        All layers are taken to be quantized as the first ones.
        """
        few = family_of(self.config).few_layers()

        def measure(smaller: GemmaConfig) -> RankStep:
            return replace(self, config=smaller, quantization=_of_layers(self.quantization, smaller)).measure()

        base = measure(few.base)
        more = [(measure(each.config), each.rest) for each in few.more]
        total = Counter(base.collectives)
        for step, rest in more:
            for name, count in (Counter(step.collectives) - Counter(base.collectives)).items():
                total[name] += rest * count
        return RankSummary(
            nodes_per_layer=max(step.nodes - base.nodes for step, _ in more),
            collectives=dict(total),
            weight_bytes=base.weight_bytes + sum(rest * (step.weight_bytes - base.weight_bytes) for step, rest in more),
            kv_bytes=base.kv_bytes + sum(rest * (step.kv_bytes - base.kv_bytes) for step, rest in more),
            window_bytes=base.window_bytes + sum(rest * (step.window_bytes - base.window_bytes) for step, rest in more),
            seconds=base.seconds + sum(rest * (step.seconds - base.seconds) for step, rest in more),
        )


@contextlib.contextmanager
def fake_group(shard: Shard) -> Iterator[None]:
    """A fake process group: inside the block collectives can be lowered for a rank of `shard`'s world."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if shard.world_size == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=shard.rank, world_size=shard.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def collective_counts(summary: RankSummary) -> tuple[int, int]:
    """All-reduces of the step, and its other collectives."""
    reduces = sum(summary.collectives.get(name, 0) for name in ("HcomAllReduce", "MatmulAllReduce"))
    return reduces, sum(summary.collectives.values()) - reduces


def collectives(graph: GeGraph) -> Counter[str]:
    """The graph's collectives, by type."""
    return Counter(node.type for node in graph.nodes if is_collective(node.type))


def _of_layers(quantization: Quantization | None, config: GemmaConfig) -> Quantization | None:
    """What is quantized of a model that has fewer layers."""
    if quantization is None:
        return None
    present = set(linear_paths(config))
    return replace(quantization, linears=tuple(path for path in quantization.linears if path in present))


def _token_bytes(graph: ModelGraph, window: int | None) -> int:
    """Bytes of a token in the caches of the layers with such a window, or of those without one."""
    tokens = graph.cache_config.blocks(window) * graph.cache_config.block_size
    slots = pool_input("slot_mapping", window)
    return (
        sum(cache.meta["val"].nbytes for cache in graph.placeholders("cache") if graph.slots_of(cache) == slots)
        // tokens
    )
