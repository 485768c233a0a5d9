"""Lower the graph of one rank of several, under a fake process group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph_gemma.graph_model.ascend.ge_graph import GeGraph
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.ascend.matmul_all_reduce import AscendMatmulAllReduce
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.runners.backends.ascend.lower import LoweredStep, lower
from graph_gemma.runners.backends.ascend.rank_graph import fake_group
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
from support import torchair_steps as steps

CHOICE = ("select_token", "shard_token_selection")  # without them a graph returns logits


def graph_of(step: steps.StepCase, shard: Shard, kernels: Sequence[Pass] = ()) -> ModelGraph:
    """A rank's graph that returns whole logits."""
    graph = capture(step.config, step.bucket, KVCacheConfig(8, step.block_size), step.dtype, step.quantization)
    passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard)
    run_passes(graph, [*(each for each in passes if each.name not in CHOICE), *kernels])
    return graph


@dataclass(frozen=True)
class Lowered:
    """A rank's graph with selected kernels, and what torchair made of it."""

    graph: ModelGraph
    step: LoweredStep

    @property
    def ge(self) -> GeGraph:
        return self.step.graph


def lower_rank(soc: str, step: steps.StepCase, shard: Shard, fused: bool = False) -> Lowered:
    chip = find_soc(soc)
    kernels = [*kernel_passes(AscendOptions(chip, "exact")), *([AscendMatmulAllReduce()] if fused else [])]
    with fake_group(shard):
        graph = graph_of(step, shard, kernels)
        lowered = Lowered(graph, lower(graph))
    check_graph(lowered.ge, chip)
    return lowered
