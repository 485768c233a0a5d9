"""Quantised linears on several ranks: the same integers in all parts together, and nearly the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import TINY_CONFIGS
from support.graphs import BUCKETS, PAGES, run_graph
from support.ranks import run_ranks
from torch import Tensor

from graph_model.capture import capture
from graph_model.graph import ModelGraph
from graph_model.quantisation import Quantisation, Scheme, linear_paths
from graph_model.quantised_weights import PartialBias
from graph_model.shard import WHOLE, Shard
from graph_model.weights import Part, Read, evaluate, from_json, to_json
from passes.check import example_inputs
from passes.manager import DEFAULT_PASSES, build_passes, run_passes
from passes.select_token import SelectToken
from passes.shard_token_selection import ShardTokenSelection
from runners.random_weights import random_weights

CONFIG = replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1)
CPU = torch.device("cpu")
# Dynamic scales of a rank are finer than those of whole rows; static ones move an integer by one at most.
BOUNDS = {"w8a8": 0.02, "w8a8_dynamic": 0.1, "w8a16": 1e-5}


def quantisation(scheme: Scheme) -> Quantisation:
    return Quantisation(scheme, linear_paths(CONFIG), stored=scheme == "w8a8")


def reader(scheme: Scheme) -> Read:
    """Random weights; static linears have an offset, and a bias besides its correction."""
    read = random_weights(CONFIG, quantisation(scheme))
    generator = torch.Generator().manual_seed(0)
    biases: dict[str, Tensor] = {}

    def read_with_offsets(name: str, part: Part | None = None) -> Tensor:
        if name.endswith("input_offset"):
            return torch.tensor([7.0])
        if name.endswith("quant_bias"):
            sums = read(name.replace("quant_bias", "weight")).sum(1, dtype=torch.int32)
            if name not in biases:
                biases[name] = torch.randint(-500, 500, sums.shape, generator=generator, dtype=torch.int32)
            whole = biases[name] - 7 * sums
            return whole if part is None else whole.narrow(part[0], part[1], part[2] - part[1])
        return read(name, part)

    return read_with_offsets


def logits_graph(scheme: Scheme, shard: Shard) -> ModelGraph:
    """A prompt's step that returns whole logits."""
    graph = capture(CONFIG, BUCKETS["prefill"], PAGES, torch.float32, quantisation(scheme))
    passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard)
    run_passes(graph, [p for p in passes if not isinstance(p, SelectToken | ShardTokenSelection)])
    return graph


def caches(graph: ModelGraph) -> list[Tensor]:
    return [torch.zeros(node.meta["val"].shape) for node in graph.placeholders("cache")]


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w8a16"])
def test_logits_of_two_ranks_are_near_those_of_one(scheme: Scheme) -> None:
    whole, parts = logits_graph(scheme, WHOLE), [logits_graph(scheme, Shard(rank, 2)) for rank in range(2)]
    read, inputs = reader(scheme), example_inputs(whole, past=False)
    (expected,) = run_graph(whole, read, inputs, caches(whole))

    def run(shard: Shard) -> Tensor:
        graph = parts[shard.rank]
        return run_graph(graph, read, inputs, caches(graph))[0]

    for found in run_ranks(2, run):
        assert ((found - expected).abs().max() / expected.abs().max()).item() <= BOUNDS[scheme]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_a_bias_sum_to_it_in_integers(world_size: int) -> None:
    read, path = reader("w8a8"), "model.layers.0.mlp.down_proj"
    columns, rows = CONFIG.intermediate_size, (CONFIG.hidden_size,)
    shares = [PartialBias(path, rows, *Shard(r, world_size).part(columns), False) for r in range(world_size)]
    tensors = evaluate(shares, read, CPU)
    assert torch.equal(sum(tensors[share] for share in shares), read(f"{path}.quant_bias"))  # type: ignore[arg-type]
    apart = evaluate([replace(share, bias_apart=True) for share in shares], read, CPU)
    correction = -7 * read(f"{path}.weight").sum(1, dtype=torch.int32)
    assert torch.equal(sum(apart.values()), correction)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic"])
def test_int8_weights_of_the_ranks_are_those_of_one(scheme: Scheme) -> None:
    """Also where a rank quantises a floating-point checkpoint itself: scales are those of whole rows."""
    read = reader(scheme)
    plans: list[dict[str, Any]] = [logits_graph(scheme, Shard(rank, 2)).weight_plan for rank in range(2)]
    plans.append(logits_graph(scheme, WHOLE).weight_plan)
    *parts, whole = [e for plan in plans for e in plan.values() if e.dtype == torch.int8 and "o_proj" in str(e)]
    assert parts == [from_json(to_json(part)) for part in parts]
    tensors = evaluate([whole, *parts], read, CPU)
    assert torch.equal(torch.cat([tensors[part] for part in parts], 1), tensors[whole])
