"""Budgets of kernels, copies and gathers in lowered graphs, and the checks of graphs against them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch

from graph_gemma.graph_model.ascend.ge_graph import FREE, GeGraph
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.backends.ascend.printer import GraphCounts, count_nodes
from graph_gemma.runners.backends.ascend.recording import LoadedGraph, recorded_graphs
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm import LLM
from support import torchair_steps as steps
from support.checkpoints import make_checkpoint
from support.chip_processes import A2, DUO

HALF = torch.float16
BLOCK = 64
MOST_TIMES = 2.5  # the time of making a graph, over that of lowering an equal one written by hand
T = TypeVar("T")

# Kernels per decoder layer of a decode step. The DUO's rotary embedding is 18 nodes of them (no RotaryMul above a
# head_dim of 128), its exact norms have two casts each, and the 2B's decomposed attention has 12 nodes.
BUDGETS = {
    (A2, "2b", "exact"): 14,
    (A2, "2b", "fused"): 12,
    (A2, "7b", "exact"): 14,
    (A2, "7b", "fused"): 12,
    (DUO, "2b", "exact"): 44,
    (DUO, "2b", "fused"): 38,
    (DUO, "7b", "exact"): 35,
    (DUO, "7b", "fused"): 29,
}
# Kernels besides: embedding, rotary tables, the final norm, the head, the token and whether its logit is finite; of the
# 2B on the DUO, which gathers blocks, a mask and the places of their tokens.
BESIDES = {(A2, "2b"): 20, (A2, "7b"): 20, (DUO, "2b"): 32, (DUO, "7b"): 24}


def check_lean(counts: GraphCounts, what: object) -> None:
    """Nothing copies a cache or a weight, or turns a tensor round, or waits for the host."""
    copies = {name: count for name, count in counts.copies.items() if count and name != "Cast"}
    assert not copies, f"{what}: {copies}"
    assert counts.weight_copies == 0, f"{what}: {counts.weight_copies} weights are transposed or cast at run time"
    assert counts.host_inputs == 0, f"{what}: {counts.host_inputs} inputs on the host"


def check_kernels(counts: GraphCounts, layers: int, per_layer: int, besides: int) -> None:
    """`per_layer` kernels in each layer, and at most so many besides."""
    others = counts.compute - layers * per_layer
    assert 0 < others <= besides, f"{counts.compute} kernels in {layers} layers: {counts.by_type}"


def selected(config: GemmaConfig, bucket: Bucket, soc: str, num_blocks: int = 1024) -> ModelGraph:
    graph = capture(config, bucket, KVCacheConfig(num_blocks, BLOCK), HALF)
    run_passes(graph, [*(cls() for cls in DEFAULT_PASSES), *kernel_passes(AscendOptions(find_soc(soc), "exact"))])
    return graph


def check_gathers(found: dict[str, int], graph: ModelGraph, tensors: int) -> None:
    """Each of `tensors` gathers copies the blocks that the rows' tables name, once."""
    config, bucket, cache_config = graph.config, graph.bucket, graph.cache_config
    rows = bucket.batch * bucket.max_blocks_per_seq * cache_config.block_size
    each = prod((rows, config.num_key_value_heads, config.head_dim, graph.dtype.itemsize))
    assert sorted(found.values()) == [each] * tensors, (found, each, tensors)


@dataclass
class Serving:
    """What a model did."""

    buckets: list[Bucket] = field(default_factory=list)  # that it ran
    graphs: list[LoadedGraph] = field(default_factory=list)  # that the engine got
    made: int = 0  # steps compiled or read from the cache


@contextmanager
def observed(llm: LLM) -> Iterator[Serving]:
    model: Any = llm.loaded.model
    assert isinstance(model, CompiledModel)
    report, run, serving = model.report, model.run, Serving()

    def made() -> int:
        return report.compiled + report.from_cache

    before = made()

    def note(bucket: Bucket) -> Any:
        serving.buckets.append(bucket)
        return run(bucket)

    with recorded_graphs() as serving.graphs:
        model.run = note
        yield serving
    serving.made = made() - before


def check_one_graph_per_bucket(warm_up: Serving, serving: Serving) -> None:
    """Every bucket's graph was handed over while warming up, once; none later."""
    assert len(warm_up.graphs) == warm_up.made >= len(set(serving.buckets)), warm_up
    assert serving.made == len(serving.graphs) == 0, serving


def serve_growing_lengths(
    folder: Path, steps_each: int, max_seq_len: int, spoil: Any = None
) -> tuple[Serving, Serving]:
    """Two sequences side by side, which grow by so many tokens; what was done while warming up, and afterwards.

    spoil: what to do to the model in between.
    """
    config = replace(steps.BASE, num_hidden_layers=1, max_position_embeddings=2048)
    make_checkpoint(folder / "checkpoint", config, dtype=HALF)
    settings = ["backend=torchair", f"model.path={folder / 'checkpoint'}", f"cache_dir={folder / 'cache'}"]
    settings += ["block_size=16", "max_batch_size=2", "max_prefill_batch_size=1", "max_prefill_tokens=64"]
    prompts, sampling = [[5, 6, 7], list(range(3, 60))], SamplingParams(max_new_tokens=steps_each, ignore_eos=True)
    with LLM([*settings, f"max_seq_len={max_seq_len}"]) as llm:
        with observed(llm) as warm_up:
            llm.warm_up(prompts, sampling)
        if spoil is not None:
            spoil(llm.loaded.model)
        with observed(llm) as serving:
            results = llm.generate(prompts, sampling)
    assert [len(result.token_ids) for result in results] == [steps_each] * 2
    return warm_up, serving


class Phases(dict[str, float]):
    """Seconds of CPU time by phase, which waiting for others does not lengthen."""

    def run(self, name: str, function: Callable[[], T]) -> T:
        start = time.process_time()
        result = function()
        self[name] = time.process_time() - start
        return result

    @property
    def total(self) -> float:
        return sum(self.values())

    def __str__(self) -> str:
        return f"{self.total:.2f} s: " + ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in self.items())


def kernels(graph: GeGraph) -> Counter[str]:
    return Counter({name: n for name, n in count_nodes(graph).by_type.items() if name not in FREE})


def check_equal_kernels(graph: GeGraph, hand: GeGraph) -> None:
    """What is compared has the same kernels."""
    own, theirs = kernels(graph), kernels(hand)
    assert own == theirs, f"only in ours: {own - theirs}, only in the one by hand: {theirs - own}"


def check_ratio(ours: Phases, theirs: Phases, report: str) -> None:
    assert ours.total <= MOST_TIMES * theirs.total, report
