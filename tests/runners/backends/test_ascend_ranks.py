"""What a rank of several does on a chip: its device, its graph, and what its lowered graph computes.

The ranks' graphs are lowered one after the other, under a process group that is none, and then run together, a thread
each: by the CPU kernels of the ops, and by the GE interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from support import torchair_steps as steps
from support.chip_processes import A2, DUO
from support.chips import with_limits, without
from support.graphs import count
from support.rank_graphs import Lowered, graph_of, lower_rank
from support.ranks import run_ranks
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.chips.chip import Limits
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.numerics import TOLERANCE
from graph_gemma.graph_model.quantization.linears import Quantization, linear_paths
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.backends.ascend.printer import count_nodes
from graph_gemma.runners.backends.torchair import AscendOptions, TorchairBackend

HALF, BRAIN = torch.float16, torch.bfloat16
LAYERS = steps.BASE.num_hidden_layers


@dataclass(frozen=True)
class AllInt8(steps.StepCase):
    """Every projection in int8, the row-parallel ones too."""

    @property
    def quantization(self) -> Quantization | None:
        assert self.scheme is not None
        return Quantization(self.scheme, linear_paths(self.config)[:-1], self.scheme == "w8a8", self.kv8)  # type: ignore[arg-type]


def run_program(rank: Lowered, step: steps.StepCase, inputs: dict[str, Tensor], caches: list[Tensor]) -> Tensor:
    """Logits of the rows that are no padding, by the interpreter."""
    arguments = [*steps.weights_of(rank.graph, step), *(cache.clone() for cache in caches)]
    arguments += [inputs[node.name] for node in rank.graph.placeholders("input")]
    outputs = Program(rank.ge).run(rank.step.as_read(arguments))
    return outputs[rank.step.output_order[0]][:2]


def compare(soc: str, step: steps.StepCase, world_size: int, fused: bool = False) -> list[tuple[float, ...]]:
    """Per rank: how far the selected graph, the lowered graph and the whole model are apart, pair by pair."""
    ranks = [lower_rank(soc, step, Shard(rank, world_size), fused) for rank in range(world_size)]
    whole = graph_of(step, WHOLE)
    inputs = steps.step_inputs(step)
    caches = [steps.filled_caches(step, rank.graph, inputs) for rank in ranks]
    expected = steps.run_on_cpu(whole, step, inputs, steps.filled_caches(step, whole, inputs)).logits

    def run(shard: Shard) -> tuple[float, ...]:
        rank, own = ranks[shard.rank], caches[shard.rank]
        on_cpu = steps.run_on_cpu(rank.graph, step, inputs, own).logits
        lowered = run_program(rank, step, inputs, own)
        return tuple(relative(*pair) for pair in ((on_cpu, lowered), (expected, on_cpu), (expected, lowered)))

    return run_ranks(world_size, run)


def relative(expected: Tensor, found: Tensor) -> float:
    return ((expected.double() - found.double()).abs().max() / expected.double().abs().max()).item()


def agree(soc: str, *cases: steps.StepCase, fused: bool = False, world_size: int = 2) -> None:
    for step in cases:
        bound = TOLERANCE[step.dtype] if step.scheme is None and not step.kv8 else 0.1
        found = compare(soc, step, world_size, fused)
        assert max(map(max, found)) <= bound, f"{step}: {found}, allowed {bound}"


@pytest.mark.chip(A2)
def test_a_backend_runs_on_the_device_that_the_rank_has_taken(tmp_path: Path) -> None:
    options = AscendOptions(find_soc(A2), "exact")
    assert TorchairBackend(options, tmp_path).device == torch.device("npu", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.get_device_module("npu"), "current_device", lambda: 3)
        assert TorchairBackend(options, tmp_path).device == torch.device("npu", 3)


@pytest.mark.chip(A2)
def test_prompt_products_and_all_reduces_become_one_kernel() -> None:
    """Ops before, ops after, matches, numerics; in the GE graph too."""
    step = steps.StepCase(steps.BASE, HALF, 64, "prefill")
    plain, fused = (lower_rank(A2, step, Shard(1, 2), fused) for fused in (False, True))
    before, after = count(plain.graph), count(fused.graph)
    assert after["ascend.matmul_all_reduce"] == 2 * LAYERS
    for name in ("ascend.linear", "gemma.all_reduce"):
        assert before[name] - after[name] == 2 * LAYERS, name
    types = [count_nodes(each.ge).by_type for each in (plain, fused)]
    assert types[1]["MatmulAllReduce"] == types[0]["HcomAllReduce"] - types[1]["HcomAllReduce"] == 2 * LAYERS
    assert count_nodes(plain.ge).compute - count_nodes(fused.ge).compute == 2 * LAYERS
    agree(A2, step, fused=True)


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_later_chunks_and_quantized_models_join_all_reduces_too() -> None:
    agree(A2, steps.StepCase(steps.BASE, HALF, 64, "extend"), fused=True)
    agree(A2, steps.StepCase(steps.BASE, HALF, 64, "prefill", scheme="w8a8_dynamic"), fused=True)


@pytest.mark.chip(A2)
def test_decode_and_quantized_layers_keep_their_all_reduces() -> None:
    decode = lower_rank(A2, steps.StepCase(steps.BASE, HALF, 64, "decode"), Shard(0, 2), fused=True)
    assert not count(decode.graph)["ascend.matmul_all_reduce"]
    quantized = steps.StepCase(steps.BASE, HALF, 64, "prefill", scheme="w8a8_dynamic")  # down_proj in floating point
    counts = count(lower_rank(A2, quantized, Shard(0, 2), fused=True).graph)
    assert (counts["ascend.matmul_all_reduce"], counts["gemma.all_reduce"]) == (LAYERS, LAYERS + 1)
    static = count(lower_rank(A2, replace(quantized, scheme="w8a8"), Shard(0, 2), fused=True).graph)
    assert (static["ascend.matmul_all_reduce"], static["gemma.all_reduce"]) == (0, 2 * LAYERS + 1)


@pytest.mark.chip(A2)
def test_a_fused_all_reduce_is_refused_where_the_chip_has_none() -> None:
    step = steps.StepCase(steps.BASE, HALF, 64, "prefill")
    lowered = lower_rank(A2, step, Shard(0, 2), fused=True).ge
    refused = {"no such op": (lowered, without(find_soc(A2), "MatmulAllReduce"))}
    refused["2 ranks; it joins 4, 8"] = (lowered, with_limits(find_soc(A2), "MatmulAllReduce", Limits(ranks=(4, 8))))
    decode = lower_rank(A2, replace(step, phase="decode"), Shard(0, 2)).ge
    node = next(node for node in decode.nodes if node.type == "MatMulV2")
    node.type, node.attrs["group"] = "MatmulAllReduce", "tag=ptd:0;rank_list=0,1"
    refused["not in a decode step"] = (decode, find_soc(A2))
    for message, (graph, chip) in refused.items():
        with pytest.raises(GeGraphError, match=message):
            check_graph(graph, chip)


@pytest.mark.chip(A2)
def test_ranks_sum_the_integers_of_static_int8_layers() -> None:
    step = AllInt8(steps.BASE, BRAIN, 64, "decode", scheme="w8a8")
    lowered = lower_rank(A2, step, Shard(1, 2))
    types = count_nodes(lowered.ge).by_type
    assert (types["DequantBias"], types["HcomAllReduce"]) == (2 * LAYERS, 2 * LAYERS + 1)
    summed = [node.outputs[0].dtype for node in lowered.ge.nodes if node.type == "HcomAllReduce"]
    assert summed.count(torch.int32) == 2 * LAYERS
    agree(A2, step)


@pytest.mark.chip(A2)
def test_ranks_sum_float_shares_of_static_models_in_float32() -> None:
    """A product that is added to float32 zeros, of which each layer has a copy; the sum, one rounding."""
    step = steps.StepCase(steps.BASE, BRAIN, 64, "decode", scheme="w8a8")  # down_proj in floating point
    lowered = lower_rank(A2, step, Shard(1, 2)).ge
    types = count_nodes(lowered).by_type
    assert (types["GemmV2"], types["TensorMove"], types["Fill"]) == (LAYERS, LAYERS, 1)
    summed = [node.outputs[0].dtype for node in lowered.nodes if node.type == "HcomAllReduce"]
    assert (summed.count(torch.int32), summed.count(torch.float32), summed.count(BRAIN)) == (LAYERS, LAYERS, 1)
    agree(A2, step)
    with pytest.raises(GeGraphError, match="no such op"):
        check_graph(lowered, without(find_soc(A2), "GemmV2"))


@pytest.mark.chip(DUO)
def test_ranks_on_the_duo_sum_what_they_have_rounded() -> None:
    for step in (AllInt8, steps.StepCase):
        given = step(steps.BASE, HALF, 64, "decode", scheme="w8a8")
        lowered = lower_rank(DUO, given, Shard(1, 2)).ge
        types = count_nodes(lowered).by_type
        assert "DequantBias" not in types
        assert "GemmV2" not in types
        summed = [node.outputs[0].dtype for node in lowered.nodes if node.type == "HcomAllReduce"]
        assert summed == [HALF] * (2 * LAYERS + 1)
        agree(DUO, given)


@pytest.mark.slow
@pytest.mark.chip
@pytest.mark.parametrize(
    ("soc", "step", "world_size"),
    [
        pytest.param(A2, steps.StepCase(steps.BASE, HALF, 64, "extend"), 4, id="float-4"),
        pytest.param(DUO, steps.StepCase(steps.BASE, HALF, 64, "extend"), 2, id="float on the DUO-2"),
        pytest.param(A2, steps.StepCase(steps.BASE, HALF, 64, "decode", kv8=True), 2, id="kv8-2"),
        pytest.param(A2, AllInt8(steps.BASE, HALF, 64, "extend", scheme="w8a8", kv8=True), 2, id="w8a8+kv8-2"),
        pytest.param(A2, AllInt8(steps.BASE, BRAIN, 64, "decode", scheme="w8a8_dynamic"), 2, id="w8a8_dynamic-2"),
    ],
)
def test_ranks_compute_what_the_whole_model_does(soc: str, step: steps.StepCase, world_size: int) -> None:
    agree(soc, step, world_size=world_size)
