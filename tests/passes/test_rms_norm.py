"""Gemma's norm is recognized, and what is not Gemma's norm is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.graphs import BFLOAT16, CASES, FLOAT32, LAYERS, Case, find, replace_call, rewrite
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import OnePlus
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.rms_norm import RMSNorm

aten = torch.ops.aten
NORMS = 2 * LAYERS + 1


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(RMSNorm(), case, bucket)
    parts = ("aten.rsqrt", "aten.mean.dim", "aten.pow.Tensor_Scalar")
    assert [done.before[op] for op in parts] == [NORMS] * 3
    assert [done.after[op] for op in parts] == [0, 0, 0]
    assert done.after["gemma.rms_norm"] == done.matches == NORMS
    assert done.error == 0.0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_norm_has_its_own_factor_and_module(case: Case) -> None:
    graph = rewrite(RMSNorm(), case).graph
    for norm in graph.calls(ops.rms_norm):
        factor = norm.args[1].meta["expression"]
        assert isinstance(factor, OnePlus)
        assert factor.x.name == norm.meta["layer"] + ".weight"
        assert norm.args[2] == case.config.rms_norm_eps
    assert len([e for e in graph.weight_plan.values() if isinstance(e, OnePlus)]) == NORMS


def factor_of(graph: ModelGraph) -> fx.Node:
    return next(n for n in graph.calls(aten.add.Tensor) if n.args[1] == 1.0 and "layers.1.input" in n.meta["layer"])


def drop_offset(graph: ModelGraph) -> None:
    factor = factor_of(graph)
    factor.replace_all_uses_with(factor.args[0])


def change_offset(graph: ModelGraph) -> None:
    factor_of(graph).update_arg(1, 2.0)


def reduce_tokens(graph: ModelGraph) -> None:
    find(graph, aten.mean.dim, "layers.1.input_layernorm").update_arg(1, [1])


def cube(graph: ModelGraph) -> None:
    find(graph, aten.pow.Tensor_Scalar, "layers.1.input_layernorm").update_arg(1, 3)


def scale_another_tensor(graph: ModelGraph) -> None:
    product = find(graph, aten.mul.Tensor, "layers.1.input_layernorm")
    product.update_arg(0, find(graph, aten.pow.Tensor_Scalar, "layers.1.input_layernorm"))


def drop_eps(graph: ModelGraph) -> None:
    shifted = find(graph, aten.add.Tensor, "layers.1.input_layernorm")
    shifted.replace_all_uses_with(shifted.args[0])


def weight_from_elsewhere(graph: ModelGraph) -> None:
    factor = factor_of(graph)
    new = graph.insert(aten.neg.default, factor.args[0], at=factor)
    if graph.dtype != torch.float32:
        new = graph.insert(aten.to.dtype, new, torch.float32, at=factor)
    factor.update_arg(0, new)


def use_the_square_root_twice(graph: ModelGraph) -> None:
    root = find(graph, aten.rsqrt.default, "layers.1.input_layernorm")
    product = next(iter(root.users))
    graph.insert(aten.add.Tensor, product, root, at=product.next)
    product.replace_all_uses_with(product.next, delete_user_cb=lambda user: user is not product.next)


BREAKS: dict[str, tuple[Callable[[ModelGraph], None], str]] = {
    "no_offset": (drop_offset, r"argument 1 \(other\) is .*expected a call of aten\.add\.Tensor"),
    "other_offset": (change_offset, r"argument 1 \(other\) is 2\.0, expected 1\.0"),
    "other_dimension": (reduce_tokens, r"argument 1 \(dim\) is 1, expected -1"),
    "other_power": (cube, r"argument 1 \(exponent\) is 3, expected 2"),
    "other_tensor": (scale_another_tensor, r"argument 0 \(self\) is (pow|add)_\d .*, expected (a call of aten.to|pow)"),
    "no_eps": (drop_eps, r"argument 0 \(self\) is mean_\d \(aten\.mean\.dim\), expected a call of aten\.add\.Tensor"),
    "no_checkpoint_weight": (weight_from_elsewhere, r"its factor is 1 \+ (neg|to)\w*, which is not a weight of"),
    "second_user": (use_the_square_root_twice, "is used by .*, .*, expected one call of aten.mul.Tensor"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("change", "reason"), BREAKS.values(), ids=BREAKS)
def test_a_broken_pattern_is_an_error_that_names_the_near_miss(
    change: Callable[[ModelGraph], None], reason: str, case: Case
) -> None:
    graph = case.before(RMSNorm)
    change(graph)
    where = r"\w+ in model\.layers\.1\.input_layernorm: "
    with pytest.raises(PassError, match=rf"rms_norm matched {NORMS - 1} times, expected {NORMS} .*{where}{reason}"):
        run_passes(graph, [RMSNorm()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_a_norm_in_another_dtype_is_a_near_miss(dtype: torch.dtype) -> None:
    graph = BFLOAT16.before(RMSNorm)
    find(graph, aten.to.dtype, "layers.1.input_layernorm").update_arg(1, dtype)
    with pytest.raises(PassError, match=rf"input_layernorm: argument 1 \(dtype\) is {dtype}, expected torch\.float32"):
        run_passes(graph, [RMSNorm()])


def test_a_result_in_another_dtype_is_a_near_miss() -> None:
    graph = BFLOAT16.before(RMSNorm)
    find(graph, aten.to.dtype, "layers.1.input_layernorm", 2).update_arg(1, torch.float16)
    with pytest.raises(PassError, match=r"argument 1 \(dtype\) is torch\.float16, expected torch\.bfloat16"):
        run_passes(graph, [RMSNorm()])


def test_without_a_cast_16_bit_is_a_near_miss() -> None:
    graph = BFLOAT16.before(RMSNorm)
    cast = find(graph, aten.to.dtype, "layers.1.input_layernorm")
    cast.replace_all_uses_with(cast.args[0])
    with pytest.raises(PassError, match=r"argument 0 \(self\) is add_\d .*, expected a call of aten\.to\.dtype"):
        run_passes(graph, [RMSNorm()])


def test_a_missing_norm_is_counted() -> None:
    graph = FLOAT32.before(RMSNorm)
    root = find(graph, aten.rsqrt.default, "model.norm")
    replace_call(graph, root, aten.reciprocal.default, root.args[0])
    with pytest.raises(PassError, match=f"matched {NORMS - 1} times, expected {NORMS} .*there was no candidate"):
        run_passes(graph, [RMSNorm()])
