"""Quantize and dequantize are inserted around the linears that are named, and folded into linears and norms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from support.graphs import (
    BFLOAT16,
    BUCKETS,
    FLOAT32,
    LAYERS,
    QUANTIZED_CASES,
    Case,
    count,
    make_caches,
    rewrite,
    run_graph,
)
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.numerics import TOLERANCE
from graph_gemma.graph_model.quantization.int8 import Dequantized
from graph_gemma.graph_model.quantization.linears import Quantization, linear_paths, select_linears
from graph_gemma.graph_model.quantization.w8a8 import DequantizedBias
from graph_gemma.passes.check import PassChecker, example_inputs
from graph_gemma.passes.fold_dequantize import FoldDequantize
from graph_gemma.passes.fold_quantize import FoldQuantize
from graph_gemma.passes.framework.contract import PassError, Tier
from graph_gemma.passes.framework.integers import SAME, IntegerBound, IntegerDifference
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.insert_quantization import InsertQuantization
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes

aten = torch.ops.aten
STATIC, _, DYNAMIC, WEIGHTS, _ = QUANTIZED_CASES.values()


@pytest.mark.parametrize("case", QUANTIZED_CASES.values(), ids=QUANTIZED_CASES)
def test_insertion_ops_before_ops_after_matches_numerics(case: Case) -> None:
    done = rewrite(InsertQuantization(), case)
    scheme = case.quantization.scheme
    linears = 3 * LAYERS  # qkv, o, gate_up; down and the head stay
    assert done.matches == linears
    expected = {
        "w8a8": {"gemma.quantize": linears, "gemma.int_linear": linears, "gemma.dequantize": linears},
        "w8a8_dynamic": {"gemma.quantize_rows": linears, "gemma.int_linear": linears, "gemma.dequantize": linears},
        "w8a16": {"gemma.dequantize_weight": linears},
    }[scheme]
    assert {name: n for name, n in done.after.items() if name not in done.before and name != "getitem"} == expected
    assert done.before["aten.linear"] - done.after["aten.linear"] == (0 if scheme == "w8a16" else linears)
    assert done.error <= {"w8a8": 0.5, "w8a8_dynamic": 0.2, "w8a16": 0.1}[scheme]


@pytest.mark.parametrize("case", QUANTIZED_CASES.values(), ids=QUANTIZED_CASES)
def test_dequantize_is_folded_into_the_linear(case: Case) -> None:
    done = rewrite(FoldDequantize(), case)
    target = "int8_weight_linear" if case.quantization.scheme == "w8a16" else "int8_linear"
    assert done.after[f"gemma.{target}"] == done.matches == 3 * LAYERS
    assert not {"gemma.int_linear", "gemma.dequantize", "gemma.dequantize_weight"} & done.after.keys()
    bound = TOLERANCE[case.dtype] if case.quantization.scheme == "w8a16" else 0.0
    assert done.error <= bound
    assert done.integers == IntegerDifference(0, 0.0)


@pytest.mark.parametrize("case", list(QUANTIZED_CASES.values())[:2], ids=["bfloat16", "float32"])
def test_quantize_is_folded_into_the_norm_bit_by_bit(case: Case) -> None:
    done = rewrite(FoldQuantize(), case)
    assert (done.before["gemma.quantize"], done.after["gemma.quantize"]) == (3 * LAYERS, LAYERS)
    assert (done.after["gemma.rms_norm_quantize"], done.after["gemma.add_rms_norm_quantize"]) == (1, 2 * LAYERS - 1)
    assert done.error == 0.0
    assert done.integers == IntegerDifference(0, 0.0)


FEW = IntegerBound(1, 0.05)


@dataclass(frozen=True)
class NearFold(FoldQuantize):
    """Folds, but takes another scale or offset: tokens hardly change, integers do."""

    tier: ClassVar[Tier] = Tier.QUANTIZING
    budget: ClassVar[float] = 0.5
    factor: float = 1.0
    shift: float = 0.0
    bound: IntegerBound = FEW

    def integer_bound(self, graph: ModelGraph) -> IntegerBound:
        return self.bound

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        x, scale, offset = candidate.args
        scaled = graph.insert(aten.mul.Tensor, scale, self.factor, at=candidate)
        shifted = graph.insert(aten.add.Tensor, offset, self.shift, at=candidate)
        replaced = graph.insert(ops.quantize, x, scaled, shifted, at=candidate)
        candidate.replace_all_uses_with(replaced)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (NearFold(factor=1.0005), None),
        (NearFold(shift=0.499), r"int8 values that products read \d\d\.\d% differ, .* allowed are 5\.0%, by 1\."),
        (NearFold(factor=1.02), r"differ, by at most [2-9]; allowed"),
    ],
    ids=["a few by one", "many", "some by more"],
)
def test_a_quantizing_fold_is_checked_by_its_share_of_integers(wrong: NearFold, message: str | None) -> None:
    graph = STATIC.before(FoldQuantize)
    if message is None:
        checker = PassChecker(STATIC.read)
        run_passes(graph, [wrong], observe=checker)
        integers = checker.comparisons[0].integers
        assert integers is not None
        assert integers.max_lsb == 1
        assert 0 < integers.share <= 0.05
        return
    with pytest.raises(PassError, match=message):
        run_passes(graph, [wrong], observe=PassChecker(STATIC.read))


def test_an_exact_fold_may_change_no_integer() -> None:
    with pytest.raises(PassError, match=r"allowed are 0\.0%, by 0\. The pass breaks its bound on integers"):
        run_passes(STATIC.before(FoldQuantize), [NearFold(1.0005, bound=SAME)], observe=PassChecker(STATIC.read))


def test_quantized_linears_compute_their_formula_in_integers() -> None:
    """y = (x_q W_q^T + quant_bias) * deq_scale, of every static linear, against numpy's int64."""
    graph = STATIC.before(InsertQuantization)
    run_passes(graph, [InsertQuantization()])
    nodes = graph.calls(ops.quantize, ops.int_linear, ops.dequantize)
    inputs = [node.args[0] for node in graph.calls(ops.quantize)]
    graph.set_outputs(*nodes, *inputs)
    graph.clean()
    with torch.no_grad():
        values = run_graph(graph, STATIC.read, example_inputs(graph, past=True), make_caches(graph))
    assert len(values) == 4 * 3 * LAYERS
    found = dict(zip([*nodes, *inputs], values, strict=True))
    names = [("self_attn", "qkv"), ("self_attn", "o"), ("mlp", ["gate", "up"])]
    for index, total in enumerate(graph.calls(ops.int_linear)):
        block, projections = names[index % 3]
        paths = [f"model.layers.{index // 3}.{block}.{name}_proj" for name in projections]

        def read(name: str, paths: list[str] = paths) -> np.ndarray:
            return np.concatenate([STATIC.read(f"{path}.{name}").float().numpy() for path in paths])

        quantize = total.args[0]
        x, q = found[quantize.args[0]].float().numpy(), found[quantize].numpy().astype(np.int64)
        scale, offset = np.float32(read("input_scale")[0]), np.float32(read("input_offset")[0])
        assert np.array_equal(q, np.clip(np.rint(x / scale + offset), -128, 127))
        bias = np.concatenate([STATIC.read(f"{path}.quant_bias").numpy() for path in paths]).astype(np.int64)
        integers = q @ read("weight").astype(np.int64).T + bias
        assert np.array_equal(found[total].numpy(), integers)
        y = torch.from_numpy(integers.astype(np.float32) * read("deq_scale")).to(STATIC.dtype)
        dequantize = next(user for user in total.users if user.target == ops.dequantize)
        assert torch.equal(found[dequantize], y)


def test_the_plain_model_has_a_checkpoints_dequantized_weights() -> None:
    """Within the steps that quantizing weights and biases takes."""
    floats = replace(STATIC, quantization=None)
    checked = 0
    for expression in STATIC.captured().weight_plan.values():
        if not isinstance(expression, Dequantized | DequantizedBias):
            continue
        found = torch.empty(expression.shape, dtype=expression.dtype)
        expression.write(found, STATIC.read)
        if isinstance(expression, Dequantized):
            weight = floats.read(f"{expression.path}.weight").float()
            step = weight.abs().amax(1, keepdim=True) / 127
            assert ((found.float() - weight).abs() <= 0.51 * step + 0.01 * weight.abs()).all()
        else:
            bias = floats.read(f"{expression.path}.bias").float()
            assert (found.float() - bias).abs().max() <= 0.01
        checked += 1
    assert checked == (6 + 4) * LAYERS  # weights; biases of attention's projections


@pytest.mark.parametrize(
    ("case", "left_out"),
    [
        *(
            (STATIC, name)
            for name in ("merge_qkv", "merge_gate_up", "fold_dequantize", "fold_quantize", "add_rms_norm")
        ),
        *((DYNAMIC, name) for name in ("merge_qkv", "fold_dequantize")),
        (WEIGHTS, "fold_dequantize"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.quantization.scheme,
)
def test_one_pass_left_out(case: Case, left_out: str) -> None:
    """The inputs of a group share one quantize, merged or not; results stay within a step of a quantized value."""
    results = []
    for names in ({left_out}, set()):
        graph = case.captured(replace(BUCKETS["extend"], logprobs=256))
        run_passes(graph, build_passes({cls.name: {"enabled": cls.name not in names} for cls in DEFAULT_PASSES}))
        quantizes = graph.calls(ops.quantize, ops.quantize_rows, ops.rms_norm_quantize, ops.add_rms_norm_quantize)
        assert len(quantizes) == (0 if case.quantization.scheme == "w8a16" else 3 * LAYERS)
        _, _, top_ids, top = run_graph(graph, case.read, example_inputs(graph, past=True), make_caches(graph))
        results.append(torch.empty_like(top).scatter_(1, top_ids, top))
    assert (results[0] - results[1]).abs().max() <= 2 * TOLERANCE[case.dtype] * results[1].abs().max()


def test_everything_can_be_quantized_the_tied_head_included() -> None:
    full = replace(BFLOAT16, quantization=Quantization("w8a16", linear_paths(BFLOAT16.config)))
    done = rewrite(InsertQuantization(), full, "decode")
    assert done.matches == 4 * LAYERS + 1
    assert done.error <= 0.2


def test_quantizing_needs_its_pass_and_leaves_other_graphs_alone() -> None:
    with pytest.raises(UserError, match=r"insert_quantization: this pass cannot be switched off"):
        build_passes({cls.name: {"enabled": cls is not InsertQuantization} for cls in DEFAULT_PASSES})
    graph = BFLOAT16.before(InsertQuantization)
    before = count(graph)
    run_passes(graph, [InsertQuantization(), FoldDequantize(), FoldQuantize()])
    assert count(graph) == before


def test_a_computed_weight_and_an_unknown_linear_are_near_misses() -> None:
    graph = DYNAMIC.before(InsertQuantization)
    linear = graph.calls(aten.linear.default)[0]
    linear.update_arg(1, graph.insert(aten.mul.Tensor, linear.args[1], 0.5, at=linear))
    with pytest.raises(PassError, match=r"matched 5 times, expected 6 .* expected weights of the checkpoint"):
        run_passes(graph, [InsertQuantization()])
    unknown = Quantization("w8a16", (*DYNAMIC.quantization.linears, "model.layers.9.self_attn.o_proj"))
    graph = replace(DYNAMIC, quantization=unknown).before(InsertQuantization)
    with pytest.raises(PassError, match="matched 6 times, expected 7"):
        run_passes(graph, [InsertQuantization()])


def test_a_norm_that_others_read_is_a_near_miss() -> None:
    graph = STATIC.before(FoldQuantize)
    quantize = graph.calls(ops.quantize)[0]
    normed = quantize.args[0]
    graph.set_outputs(*graph.outputs, graph.insert(aten.neg.default, normed, at=graph.graph.output_node()))
    with pytest.raises(PassError, match="the norm is read by others than the quantize"):
        run_passes(graph, [FoldQuantize()])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["dwon_proj"], "names no linear layer"),
        (["k_proj"], "would be partly quantized"),
        (["layers.0.*gate_proj"], "partly"),
    ],
)
def test_wrong_selections_are_refused(keep: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_linears(FLOAT32.config, keep)


def test_names_and_patterns_select() -> None:
    paths = linear_paths(FLOAT32.config)
    assert len(paths) == 7 * LAYERS + 1
    chosen = select_linears(FLOAT32.config, ["down_proj", "lm_head", "model.layers.0.*"])
    assert chosen == tuple(p for p in paths if ".1." in p and "down" not in p)
