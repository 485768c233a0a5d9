"""Time of making a full-size step's graph, against lowering an equal one written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.ascend_budgets import Phases, check_equal_kernels, check_ratio, kernels
from support.chip_processes import A2, DUO
from support.hand_fused import hand_fused

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, read_graph
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.backends.ascend.engine import compiler_config
from graph_gemma.runners.backends.ascend.lower import lower, lower_module
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes

BLOCKS = 4096
DECODE, PREFILL, EXTEND = Bucket("decode", 8, 1, 16), Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, 16)


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


@pytest.mark.chip
@pytest.mark.parametrize(
    ("soc", "config", "bucket", "dtype", "block_size"),
    [
        pytest.param(A2, replace(GEMMA_7B, num_hidden_layers=3), DECODE, torch.float16, 64, id="three layers"),
        *(
            pytest.param(*given, id=name, marks=pytest.mark.slow)
            for name, *given in (
                ("7b decode", A2, GEMMA_7B, DECODE, torch.bfloat16, 64),
                ("2b decode", A2, GEMMA_2B, DECODE, torch.float16, 64),
                ("7b prefill", A2, GEMMA_7B, PREFILL, torch.float16, 64),
                ("7b later chunk with pages", A2, GEMMA_7B, EXTEND, torch.float16, 128),
                ("7b later chunk with gathered blocks", A2, GEMMA_7B, EXTEND, torch.float16, 64),
                ("7b decode on the DUO", DUO, GEMMA_7B, DECODE, torch.float16, 64),
                ("2b decode on the DUO", DUO, GEMMA_2B, DECODE, torch.float16, 64),
                ("7b prefill on the DUO", DUO, GEMMA_7B, PREFILL, torch.float16, 64),
            )
        ),
    ],
)
def test_making_a_graph_takes_little_longer_than_by_hand(
    soc: str, config: GemmaConfig, bucket: Bucket, dtype: torch.dtype, block_size: int
) -> None:
    """Each twice, alternating; the faster of each phase counts."""
    cache_config = KVCacheConfig(BLOCKS, block_size)
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
