"""The gated activation, in its tanh form only."""

from __future__ import annotations

import pytest
import torch
from support.graphs import CASES, FLOAT32, LAYERS, Case, find, replace_call, rewrite

from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.gelu_and_mul import GeluAndMul

aten = torch.ops.aten


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(GeluAndMul(), case, bucket)
    assert (done.before["aten.gelu"], done.after["aten.gelu"]) == (LAYERS, 0)
    assert done.before["aten.mul.Tensor"] - done.after["aten.mul.Tensor"] == LAYERS
    assert done.after["gemma.gelu_and_mul"] == done.matches == LAYERS
    assert done.error == 0.0


@pytest.mark.parametrize("kwargs", [{}, {"approximate": "none"}])
def test_the_erf_form_is_a_near_miss(kwargs: dict[str, str]) -> None:
    graph = FLOAT32.before(GeluAndMul)
    find(graph, aten.gelu.default, "layers.1.mlp").kwargs = kwargs
    reason = r"gelu_1 in model\.layers\.1\.mlp: argument 1 \(approximate\) is 'none', expected 'tanh'"
    with pytest.raises(PassError, match=rf"gelu_and_mul matched 1 times, expected 2 .*{reason}"):
        run_passes(graph, [GeluAndMul()])


def test_a_sum_in_place_of_the_product_is_a_near_miss() -> None:
    graph = FLOAT32.before(GeluAndMul)
    product = find(graph, aten.mul.Tensor, "layers.1.mlp")
    replace_call(graph, product, aten.add.Tensor, *product.args)
    with pytest.raises(PassError, match=r"gelu_1 in model\.layers\.1\.mlp: is used by add\w* \(aten\.add\.Tensor\)"):
        run_passes(graph, [GeluAndMul()])


def test_a_number_in_place_of_the_other_factor_is_a_near_miss() -> None:
    graph = FLOAT32.before(GeluAndMul)
    find(graph, aten.mul.Tensor, "layers.1.mlp").update_arg(1, 2.0)
    with pytest.raises(PassError, match=r"mul_\d+ in model\.layers\.1\.mlp: argument 1 \(other\) is 2\.0, expected a"):
        run_passes(graph, [GeluAndMul()])
