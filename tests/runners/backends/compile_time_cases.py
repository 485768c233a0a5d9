"""Time of making a full-size step's graph, against lowering an equal one written by hand. See support.standin_cases."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from hand_fused import hand_fused
from support.standin_cases import A2, DUO, Case, Cases

from graph_model.ascend.ge_graph import FREE, GeGraph, read_graph
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.chips.registry import find_soc
from graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_model.graph import KVCacheConfig
from passes.framework.manager import run_passes
from passes.pipeline import DEFAULT_PASSES
from runners.backends.ascend.engine import compiler_config
from runners.backends.ascend.lower import lower, lower_module
from runners.backends.ascend.printer import count_nodes
from runners.backends.torchair import AscendOptions, kernel_passes

CASES = Cases()
MOST = 2.5
BLOCKS = 4096
DECODE, PREFILL, EXTEND = Bucket("decode", 8, 1, 16), Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, 16)
T = TypeVar("T")


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


def own(
    config: GemmaConfig, bucket: Bucket, dtype: torch.dtype, soc: str, cache_config: KVCacheConfig
) -> tuple[Phases, GeGraph]:
    """Phases from the plain model to the GE graph."""
    phases = Phases()
    graph = phases.run("capture", lambda: capture(config, bucket, cache_config, dtype))
    phases.run("passes", lambda: run_passes(graph, [cls() for cls in DEFAULT_PASSES]))
    phases.run("kernels", lambda: run_passes(graph, kernel_passes(AscendOptions(find_soc(soc), "exact"))))
    return phases, phases.run("lowering", lambda: lower(graph)).graph


def by_hand(
    config: GemmaConfig, bucket: Bucket, dtype: torch.dtype, soc: str, cache_config: KVCacheConfig
) -> tuple[Phases, GeGraph]:
    """The same of the step that is written by hand."""
    phases = Phases()
    module, fakes = phases.run("export", lambda: hand_fused(config, bucket, cache_config, dtype, find_soc(soc)))

    def lower_it() -> Any:
        with fakes[0].fake_mode:  # type: ignore[attr-defined]
            return lower_module(module, fakes, compiler_config())[0]

    return phases, read_graph(phases.run("lowering", lower_it).graph._proto)


def fastest(runs: list[Phases]) -> Phases:
    return Phases({name: min(run[name] for run in runs) for name in runs[0]})


def kernels(graph: GeGraph) -> Counter[str]:
    return Counter({name: n for name, n in count_nodes(graph).by_type.items() if name not in FREE})


def compare(config: GemmaConfig, bucket: Bucket, dtype: torch.dtype, soc: str, cache_config: KVCacheConfig) -> None:
    """Each twice, alternating; the faster of each phase counts."""
    runs = [make(config, bucket, dtype, soc, cache_config) for _ in range(2) for make in (own, by_hand)]
    (ours, graph), (theirs, hand) = ((fastest([run[0] for run in runs[i::2]]), runs[i][1]) for i in (0, 1))
    report = (
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {bucket}, "
        f"blocks of {cache_config.block_size}, on {soc}: "
        f"own {ours}; by hand {theirs}; ratio {ours.total / theirs.total:.2f}; {kernels(graph).total()} kernels"
    )
    print(report)
    check_equal_kernels(graph, hand)
    check_ratio(ours, theirs, report)


def check_equal_kernels(graph: GeGraph, hand: GeGraph) -> None:
    """What is compared has the same kernels."""
    own, theirs = kernels(graph), kernels(hand)
    assert own == theirs, f"only in ours: {own - theirs}, only in the one by hand: {theirs - own}"


def check_ratio(ours: Phases, theirs: Phases, report: str) -> None:
    assert ours.total <= MOST * theirs.total, report


def register(
    name: str,
    soc: str,
    config: GemmaConfig,
    bucket: Bucket,
    dtype: torch.dtype = torch.float16,
    block_size: int = 64,
    slow: bool = True,
) -> None:
    cache_config = KVCacheConfig(BLOCKS, block_size)
    name = f"making_the_graph_of_{name}_takes_little_longer_than_by_hand"
    CASES[name] = Case(soc, lambda folder: compare(config, bucket, dtype, soc, cache_config), slow)


register("three_layers", A2, replace(GEMMA_7B, num_hidden_layers=3), DECODE, slow=False)
register("7b_decode", A2, GEMMA_7B, DECODE, torch.bfloat16)
register("2b_decode", A2, GEMMA_2B, DECODE)
register("7b_prefill", A2, GEMMA_7B, PREFILL)
register("a_later_chunk_of_7b_with_pages", A2, GEMMA_7B, EXTEND, block_size=128)
register("a_later_chunk_of_7b_with_gathered_blocks", A2, GEMMA_7B, EXTEND)
register("7b_decode_on_the_duo", DUO, GEMMA_7B, DECODE)
register("2b_decode_on_the_duo", DUO, GEMMA_2B, DECODE)
register("7b_prefill_on_the_duo", DUO, GEMMA_7B, PREFILL)


if __name__ == "__main__":
    CASES.main()
