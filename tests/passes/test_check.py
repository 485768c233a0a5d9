"""Check mode: it passes good passes, stops at the first wrong one and names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from support.checkpoints import make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS
from support.graphs import BFLOAT16, BUCKETS, FLOAT32, find, replace_call
from support.overflow import make_loud_model
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.numerics import TOLERANCE, difference
from graph_gemma.passes.check import PassChecker, check_passes, example_inputs
from graph_gemma.passes.fold_dequantize import FoldDequantize
from graph_gemma.passes.fold_quantize import FoldQuantize
from graph_gemma.passes.framework.contract import Matches, Pass, PassError, Tier
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.framework.matches import ONCE, per_model
from graph_gemma.passes.gelu_and_mul import GeluAndMul
from graph_gemma.passes.insert_quantization import InsertQuantization
from graph_gemma.passes.paged_attention import PagedAttention
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.passes.quantize_cache import QuantizeCache
from graph_gemma.passes.rotary import Rotary
from graph_gemma.passes.scale_residual import ScaleResidual
from graph_gemma.passes.softcap import Softcap

aten = torch.ops.aten
QUANTIZING = (QuantizeCache, InsertQuantization, FoldDequantize, FoldQuantize)  # they leave float graphs alone
FLOAT_PASSES = tuple(cls for cls in DEFAULT_PASSES if cls not in (*QUANTIZING, ScaleResidual, Softcap))  # of Gemma 1


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_every_pass_holds_its_tier_on_every_config(name: str) -> None:
    config = replace(TINY_CONFIGS[name], num_hidden_layers=1)
    read = dict(make_model(config).named_parameters()).__getitem__
    buckets = [BUCKETS["extend"], BUCKETS["sample"]]
    comparisons = check_passes(config, torch.float32, [cls() for cls in DEFAULT_PASSES], read, buckets)
    assert [(c.bucket, c.graph_pass.name) for c in comparisons] == [(b, p.name) for b in buckets for p in FLOAT_PASSES]
    assert all(c.error <= (0 if c.graph_pass.tier is Tier.EXACT else 1e-5) for c in comparisons)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_pass_holds_its_tier_in_16_bit(dtype: torch.dtype) -> None:
    config = replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=1)
    read = dict(make_model(config, dtype=dtype).named_parameters()).__getitem__
    comparisons = check_passes(config, dtype, [cls() for cls in DEFAULT_PASSES], read)
    assert len(comparisons) == 4 * len(FLOAT_PASSES)
    assert all(c.error <= (0 if c.graph_pass.tier is Tier.EXACT else TOLERANCE[dtype]) for c in comparisons)


@pytest.mark.parametrize("name", LATER_CONFIGS)
def test_before_the_stream_is_scaled_float32_is_compared(name: str) -> None:
    """The graphs up to scale_residual give no finite number in float16, for real checkpoints."""
    config = LATER_CONFIGS[name].of_layers(range(2))
    read = {key: p.to(torch.float16) for key, p in make_loud_model(config, 30000.0).state_dict().items()}.__getitem__
    passes = [cls() for cls in DEFAULT_PASSES]
    comparisons = check_passes(config, torch.float16, passes, read, [BUCKETS["extend"]])
    widened = [c.graph_pass.name for c in comparisons if c.in_float32]
    assert widened == ["canonicalize", "fold_inv_freq", "rms_norm", "scale_residual"]
    assert max(c.error for c in comparisons if c.graph_pass.name == "scale_residual") == 0.0
    index = passes.index(ScaleResidual())
    with pytest.raises(PassError, match=r"^norm_nudge on extend.*in float32.*The pass breaks its tier, exact"):
        check_passes(config, torch.float16, [*passes[:index], NormNudge(1.0001)], read, [BUCKETS["extend"]])


@dataclass(frozen=True)
class Nudge(Pass):
    """Multiplies what the last MLP activates by a factor near 1."""

    name: ClassVar[str] = "nudge"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = ONCE
    factor: float

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(ops.gelu_and_mul)[-1:]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        scaled = graph.insert(aten.mul.Tensor, candidate, self.factor, at=candidate.next)
        candidate.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


@dataclass(frozen=True)
class TolerantNudge(Nudge):
    name: ClassVar[str] = "tolerant_nudge"
    tier: ClassVar[Tier] = Tier.TOLERANT


@dataclass(frozen=True)
class NormNudge(Nudge):
    name: ClassVar[str] = "norm_nudge"

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(ops.rms_norm)[-1:]


@dataclass(frozen=True)
class SwapTables(Pass):
    """Gives rotary embedding sine for cosine: fluent nonsense with every contract kept."""

    name: ClassVar[str] = "swap_tables"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = per_model(lambda counts: counts.rotations)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(ops.rotary)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, cos, sin = candidate.args
        replace_call(graph, candidate, ops.rotary, x, sin, cos)


@dataclass(frozen=True)
class WrongPagedAttention(PagedAttention):
    """Queries and keys exchanged for layer 1."""

    name: ClassVar[str] = "wrong_paged_attention"

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        super().rewrite(graph, candidate)
        attention = graph.calls(ops.paged_attention)[-1]
        attention.update_arg(1, attention.args[2])


# A row of one token attends to itself alone until attention is paged, so that no rotation shows in decode.
WRONG = [
    *((bucket, wrong) for bucket in BUCKETS for wrong in (Nudge(1.0001), TolerantNudge(1.01))),
    *((bucket, SwapTables()) for bucket in ("prefill", "extend")),
]


@pytest.mark.parametrize(("bucket", "wrong"), WRONG, ids=lambda value: getattr(value, "name", value))
def test_the_run_stops_at_the_wrong_pass_and_names_it(bucket: str, wrong: Pass) -> None:
    passes = [cls() for cls in FLOAT_PASSES]
    index = FLOAT_PASSES.index(PagedAttention)
    checker = PassChecker(FLOAT32.read)
    with pytest.raises(PassError, match=rf"^{wrong.name} on .*difference .*breaks its tier, {wrong.tier.value}"):
        run_passes(FLOAT32.captured(bucket), [*passes[:index], wrong, *passes[index:]], observe=checker)
    assert [c.graph_pass for c in checker.comparisons] == passes[:index]


def test_a_wrong_pass_that_replaces_a_good_one_is_named() -> None:
    checker = PassChecker(FLOAT32.read)
    passes = [WrongPagedAttention() if cls is PagedAttention else cls() for cls in DEFAULT_PASSES]
    with pytest.raises(PassError, match=r"^wrong_paged_attention on extend-b2-t8-w2"):
        run_passes(FLOAT32.captured(), passes, observe=checker)


def test_a_change_within_the_tier_passes() -> None:
    checker = PassChecker(BFLOAT16.read)
    run_passes(BFLOAT16.before(PagedAttention), [TolerantNudge(1.004)], observe=checker)
    assert 0 < checker.comparisons[0].error <= TOLERANCE[torch.bfloat16]


def test_bit_equal_means_every_bit() -> None:
    """One unit in the last place of bfloat16."""
    checker = PassChecker(BFLOAT16.read)
    with pytest.raises(PassError, match=r"allowed 0e\+00\. The pass breaks its tier, exact"):
        run_passes(BFLOAT16.before(PagedAttention), [Nudge(1.004)], observe=checker)


def test_not_a_number_is_a_difference() -> None:
    checker = PassChecker(FLOAT32.read)
    with pytest.raises(PassError, match=r"tolerant_nudge on .*difference inf"):
        run_passes(FLOAT32.before(PagedAttention), [TolerantNudge(float("nan"))], observe=checker)


def test_difference_is_relative_to_the_largest_value() -> None:
    a = torch.tensor([1.0, -4.0])
    assert difference(a, a) == 0
    assert difference(a, torch.tensor([1.0, -4.5])) == 0.125
    assert difference(a, a.bfloat16()) == float("inf")
    assert difference(a, a[:1]) == float("inf")
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25


@pytest.mark.parametrize("bucket", ["prefill", "extend", "decode", "sample"])
@pytest.mark.parametrize("past", [False, True])
def test_example_inputs_are_a_step_as_the_host_prepares_it(bucket: str, past: bool) -> None:
    graph = FLOAT32.before(GeluAndMul, bucket)
    inputs = example_inputs(graph, past)
    slots = inputs["slot_mapping"].flatten().tolist()
    assert len(set(slots)) == len(slots)
    assert max(slots) < graph.cache_config.num_blocks * graph.cache_config.block_size
    for row, length in enumerate(inputs["query_lens"].tolist()):
        start = int(inputs["context_lens"][row]) - length
        assert inputs["positions"][row, :length].tolist() == list(range(start, start + length))
        assert (start > 0) == (past and bucket != "prefill")
        if graph.bucket.max_blocks_per_seq:
            for token in range(length):
                position = start + token
                block = int(inputs["block_table"][row, position // 16])
                assert inputs["slot_mapping"][row, token] == block * 16 + position % 16
    assert len(set(inputs["query_lens"].tolist())) == (2 if graph.bucket.chunk > 1 else 1)


def test_the_graph_before_is_left_alone() -> None:
    graph = FLOAT32.before(Rotary)
    negations = len(graph.calls(aten.neg.default))
    seen: list[int] = []
    run_passes(graph, [Rotary()], observe=lambda _, before, after: seen.append(len(before.calls(aten.neg.default))))
    assert seen == [negations]
    assert find(graph, ops.rotary)
