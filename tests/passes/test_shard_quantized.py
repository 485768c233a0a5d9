"""Quantized linears on several ranks: the same integers in all parts together, and nearly the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import TINY_CONFIGS
from support.graphs import BFLOAT16, BUCKETS, KV_CACHE, count, find, run_graph
from support.ranks import part_reader, run_ranks
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization, linear_paths, select_linears
from graph_gemma.graph_model.quantization.w8a8 import PartialBias
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import Part, Read, evaluate, expressions, from_json, to_json
from graph_gemma.passes.check import example_inputs
from graph_gemma.passes.cpu.onednn_linear import OneDNNLinear
from graph_gemma.passes.cpu.skinny_linear import SkinnyLinear
from graph_gemma.passes.cpu.tiled_linear import TiledLinear
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.passes.select_token import SelectToken
from graph_gemma.passes.shard_token_selection import ShardTokenSelection
from graph_gemma.runners.llm.random_weights import random_weights

SIXTEEN_BIT = [torch.float16, torch.bfloat16]
CONFIG = replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1)
CPU = torch.device("cpu")
aten = torch.ops.aten
# Dynamic scales of a rank are finer than those of whole rows; static ones move an integer by one at most.
BOUNDS = {"w8a8": 0.02, "w8a8_dynamic": 0.1, "w8a16": 1e-5}


def quantization(scheme: str) -> Quantization:
    return Quantization(scheme, linear_paths(CONFIG), stored=scheme == "w8a8")


def reader(scheme: str) -> Read:
    """Random weights; static linears have an offset, and a bias besides its correction."""
    read = random_weights(CONFIG, quantization(scheme))
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


def logits_graph(
    scheme: str | Quantization | None,
    shard: Shard,
    dtype: torch.dtype = torch.float32,
    kv8: bool = False,
    phase: str = "prefill",
) -> ModelGraph:
    """A step that returns whole logits."""
    how = scheme if isinstance(scheme, Quantization) else quantization(scheme) if scheme else Quantization(None)
    how = replace(how, kv8=kv8)
    graph = capture(CONFIG, BUCKETS[phase], KV_CACHE, dtype, how if scheme or kv8 else None)
    passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard)
    run_passes(graph, [p for p in passes if not isinstance(p, SelectToken | ShardTokenSelection)])
    return graph


def caches(graph: ModelGraph) -> list[Tensor]:
    return [torch.zeros(node.meta["val"].shape, dtype=graph.dtype) for node in graph.placeholders("cache")]


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w8a16"])
def test_logits_of_two_ranks_are_near_those_of_one(scheme: str) -> None:
    whole, parts = logits_graph(scheme, WHOLE), [logits_graph(scheme, Shard(rank, 2)) for rank in range(2)]
    read, inputs = reader(scheme), example_inputs(whole, past=False)
    (expected,) = run_graph(whole, read, inputs, caches(whole))

    def run(shard: Shard) -> Tensor:
        graph = parts[shard.rank]
        return run_graph(graph, read, inputs, caches(graph))[0]

    for found in run_ranks(2, run):
        assert ((found - expected).abs().max() / expected.abs().max()).item() <= BOUNDS[scheme]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_static_row_parallel_layers_sum_integers_scaled_once(dtype: torch.dtype) -> None:
    """Ops before and after; and the sum of the ranks' integers is one rank's."""
    whole, parts = (
        logits_graph("w8a8", WHOLE, dtype),
        [logits_graph("w8a8", Shard(rank, 2), dtype) for rank in range(2)],
    )
    calls = count(parts[1])
    assert (calls["gemma.int_linear"], calls["gemma.dequantize"]) == (2, 2)
    assert [node.meta["val"].dtype for node in parts[1].calls(ops.all_reduce)] == [dtype, torch.int32, torch.int32]
    assert count(whole)["gemma.int_linear"] == 0
    for graph in (whole, *parts):
        graph.set_outputs(find(graph, ops.int8_linear if graph is whole else ops.dequantize, "o_proj"))
        graph.clean()
    read, inputs = reader("w8a8"), example_inputs(whole, past=False)
    (expected,) = run_graph(whole, read, inputs, caches(whole))
    for found in run_ranks(2, lambda shard: run_graph(parts[shard.rank], read, inputs, caches(parts[shard.rank]))[0]):
        assert torch.equal(found, expected)


DOWN_PROJ_IN_FLOAT = Quantization("w8a8", select_linears(CONFIG, ["down_proj", "lm_head"]), stored=True)


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_float_shares_among_static_layers_are_summed_in_float32(phase: str, dtype: torch.dtype) -> None:
    """Ops before and after; as few roundings as one rank has; what CPUs compute it with."""
    parts = [logits_graph(DOWN_PROJ_IN_FLOAT, Shard(rank, 2), dtype, phase=phase) for rank in range(2)]
    summed = [node.meta["val"].dtype for node in parts[0].calls(ops.all_reduce)]
    assert summed == [dtype, torch.int32, torch.float32]
    for part in parts:
        run_passes(part, [SkinnyLinear(), *((OneDNNLinear(),) if ops.onednn_supports(dtype) else ()), TiledLinear()])
    kernels = (ops.skinny_linear, ops.tiled_linear)
    (share,) = [node for node in parts[0].calls(*kernels) if node.meta["val"].dtype == torch.float32]
    assert (share.meta["layer"], share.args[2:]) == ("model.layers.0.mlp.down_proj", (None, torch.float32))

    whole = logits_graph(DOWN_PROJ_IN_FLOAT, WHOLE, dtype, phase=phase)
    for graph in (whole, *parts):
        graph.set_outputs(find(graph, aten.linear.default if graph is whole else aten.to.dtype, "down_proj"))
        graph.clean()
    read, inputs = reader("w8a8"), example_inputs(whole, past=False)
    (expected,) = run_graph(whole, read, inputs, caches(whole))
    for found in run_ranks(2, lambda shard: run_graph(parts[shard.rank], read, inputs, caches(parts[shard.rank]))[0]):
        assert found.dtype == dtype
        assert ((found - expected).abs() <= expected.abs() * torch.finfo(dtype).eps + 1e-6).all()
        assert (found == expected).float().mean() >= 0.98


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic"])
def test_other_shares_are_summed_in_the_models_dtype(scheme: str) -> None:
    dtype = torch.float32 if scheme == "w8a8" else torch.bfloat16
    graph = logits_graph(replace(DOWN_PROJ_IN_FLOAT, scheme=scheme, stored=scheme == "w8a8"), Shard(0, 2), dtype)
    assert graph.calls(ops.all_reduce)[-1].meta["val"].dtype == dtype
    assert not graph.calls(ops.float32_linear)


@pytest.mark.parametrize("scheme", [None, "w8a8"])
@pytest.mark.parametrize("phase", ["extend", "decode"])
def test_a_rank_has_its_heads_of_an_int8_cache(scheme: str | None, phase: str) -> None:
    """Integers and scales are those of one rank, before and after a step, and so are the logits."""
    whole = logits_graph(scheme, WHOLE, kv8=True, phase=phase)
    parts = [logits_graph(scheme, Shard(rank, 2), kv8=True, phase=phase) for rank in range(2)]
    read = reader(scheme) if scheme else random_weights(CONFIG)
    inputs = example_inputs(whole, past=True)
    held = []
    generator = torch.Generator().manual_seed(0)
    for node in whole.placeholders("cache"):
        value, random = node.meta["val"], torch.rand(node.meta["val"].shape, generator=generator)
        held.append((random * 200 - 100).to(torch.int8) if value.dtype == torch.int8 else random / 100 + 0.001)
    assert {cache.dtype for cache in held} == {torch.int8, torch.float32}

    def of_rank(cache: Tensor, rank: int) -> Tensor:
        return cache.narrow(1, rank, 1).clone()  # [blocks, heads, block_size, head_dim]; [blocks, heads, block_size]

    own = [[of_rank(cache, rank) for cache in held] for rank in range(2)]
    for part, mine in zip(parts, own, strict=True):
        assert [node.meta["val"].shape for node in part.placeholders("cache")] == [cache.shape for cache in mine]
    (expected,) = run_graph(whole, read, inputs, held)
    found = run_ranks(2, lambda shard: run_graph(parts[shard.rank], read, inputs, own[shard.rank])[0])
    for rank in range(2):
        assert ((found[rank] - expected).abs().max() / expected.abs().max()).item() <= (0.02 if scheme else 1e-4)
        for cache, mine in zip(held, own[rank], strict=True):
            assert (of_rank(cache, rank).float() - mine.float()).abs().max() <= (
                1 if cache.dtype == torch.int8 else 1e-6
            )


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_a_bias_sum_to_it_in_integers(world_size: int) -> None:
    read, path = reader("w8a8"), "model.layers.0.mlp.down_proj"
    columns, rows = CONFIG.intermediate_size, (CONFIG.hidden_size,)
    shares = [PartialBias(path, rows, *Shard(r, world_size).part(columns)) for r in range(world_size)]
    tensors = evaluate(shares, read, CPU)
    assert torch.equal(sum(tensors[share] for share in shares), read(f"{path}.quant_bias"))  # type: ignore[arg-type]


BIASED = replace(BFLOAT16, config=replace(BFLOAT16.config, num_hidden_layers=1))


@pytest.mark.parametrize("keep_float", ["down_proj", "o_proj"])
def test_a_row_parallel_layers_bias_is_rounded_with_the_sum(keep_float: str) -> None:
    """It is part of the integers' bias, or is added to float32 sums: one rounding, as on one rank."""
    linears = select_linears(BIASED.config, [keep_float, "lm_head"])
    case = replace(BIASED, quantization=Quantization("w8a8", linears, stored=True))
    whole, parts = case.captured("prefill"), [case.captured("prefill") for _ in range(2)]
    run_passes(whole, [cls() for cls in DEFAULT_PASSES])
    for rank, part in enumerate(parts):
        passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, Shard(rank, 2))
        run_passes(part, passes)
        bias = find(part, aten.add.Tensor, "o_proj") if keep_float == "o_proj" else None
        assert len([n for n in part.calls(aten.add.Tensor) if n.meta["layer"].endswith("o_proj")]) == (bias is not None)
        if bias is not None:
            assert [arg.meta["val"].dtype for arg in bias.args] == [torch.float32, torch.bfloat16]
        part.set_outputs(find(part, aten.to.dtype if bias is not None else ops.dequantize, "o_proj"))
        part.clean()
    whole.set_outputs(find(whole, aten.linear.default if keep_float == "o_proj" else ops.int8_linear, "o_proj"))
    whole.clean()
    inputs = example_inputs(whole, past=False)
    (expected,) = run_graph(whole, case.read, inputs, caches(whole))
    read = part_reader(case.read)
    found = run_ranks(2, lambda shard: run_graph(parts[shard.rank], read, inputs, caches(parts[shard.rank]))[0])
    for each in found:
        assert ((each - expected).abs() <= expected.abs() * torch.finfo(torch.bfloat16).eps + 1e-6).all()
        assert (each == expected).float().mean() >= (0.98 if keep_float == "o_proj" else 1)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic"])
def test_a_rank_reads_its_rows_and_few_columns_of_others(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are those of whole rows; rank 0's bias is what quant_bias holds besides all ranks' corrections."""
    read, rows = reader(scheme), 8
    for rank in range(2):
        plan = logits_graph(scheme, Shard(rank, 2)).weight_plan
        expected = evaluate(plan.values(), read, CPU)
        reads: list[tuple[str, Part | None]] = []

        def recorded(name: str, part: Part | None = None, to: list[tuple[str, Part | None]] = reads) -> Tensor:
            to.append((name, part))
            return read(name, part)

        with monkeypatch.context() as patch:
            patch.setattr(expressions, "_ROWS_AT_A_TIME", rows)
            found = evaluate(plan.values(), recorded, CPU)
        assert all(torch.equal(found[expression], expected[expression]) for expression in plan.values())
        matrices = [(name, part) for name, part in reads if name.endswith(".weight") and "norm" not in name]
        assert [name for name, part in matrices if part is None] == []
        foreign = [(name, part) for name, part in matrices if not is_own(name, part, Shard(rank, 2))]
        assert all(part[0] == 0 and part[2] - part[1] <= rows for _, part in foreign if part)
        names = {name.split(".")[-2] for name, _ in foreign}
        assert names == ({"o_proj", "down_proj"} if rank == 0 or scheme == "w8a8_dynamic" else set())


def is_own(name: str, part: Part | None, shard: Shard) -> bool:
    """Whether a rank holds all that is read of a matrix."""
    assert part is not None
    dim, *span = part
    module = name.split(".")[-2]
    row_parallel = module in ("o_proj", "down_proj")
    if module in ("k_proj", "v_proj"):
        first, last = shard.kv_part(family_of(CONFIG).layers[0].attention)
    else:
        sizes = {"q_proj": 64, "o_proj": 64, "gate_proj": 96, "up_proj": 96, "down_proj": 96, "embed_tokens": 256}
        first, last = shard.part({**sizes, "lm_head": 256}[module])
    return dim == row_parallel and first <= span[0] <= span[1] <= last


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic"])
def test_int8_weights_of_the_ranks_are_those_of_one(scheme: str) -> None:
    """Also where a rank quantizes a floating-point checkpoint itself: scales are those of whole rows."""
    read = reader(scheme)
    plans: list[dict[str, Any]] = [logits_graph(scheme, Shard(rank, 2)).weight_plan for rank in range(2)]
    plans.append(logits_graph(scheme, WHOLE).weight_plan)
    *parts, whole = [e for plan in plans for e in plan.values() if e.dtype == torch.int8 and "o_proj" in str(e)]
    assert parts == [from_json(to_json(part)) for part in parts]
    tensors = evaluate([whole, *parts], read, CPU)
    assert torch.equal(torch.cat([tensors[part] for part in parts], 1), tensors[whole])
