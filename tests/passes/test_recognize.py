"""Arithmetic is recognized however its operands stand, and a near miss is that of the nearest order."""

from __future__ import annotations

import pytest
import torch
from support.graphs import BFLOAT16, FLOAT32, LAYERS, Case, find
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.gelu_and_mul import GeluAndMul
from graph_gemma.passes.paged_attention import PagedAttention
from graph_gemma.passes.recognize import Recognize
from graph_gemma.passes.rms_norm import RMSNorm
from graph_gemma.passes.rotary import Rotary

aten = torch.ops.aten


def exchange_operands(graph: ModelGraph, layer: str) -> list[fx.Node]:
    """Turn round the sums and products of two tensors in a module."""
    nodes = [n for n in graph.calls(aten.add.Tensor, aten.mul.Tensor) if n.meta["layer"].endswith(layer)]
    exchanged = [node for node in nodes if len(node.all_input_nodes) == 2]
    for node in exchanged:
        node.args = tuple(reversed(node.args))
    return exchanged


ORDERS = {
    "rms_norm": (RMSNorm(), "layers.1.input_layernorm", 2),
    "rotary": (Rotary(), "layers.1.self_attn", 6),
    "gelu_and_mul": (GeluAndMul(), "layers.1.mlp", 1),
}


@pytest.mark.parametrize("case", [BFLOAT16, FLOAT32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(("graph_pass", "layer", "count"), ORDERS.values(), ids=ORDERS)
def test_operands_match_in_either_order(graph_pass: Recognize, layer: str, count: int, case: Case) -> None:
    graph = case.before(type(graph_pass))
    assert len(exchange_operands(graph, layer)) == count
    checker = PassChecker(case.read)
    run_passes(graph, [graph_pass], observe=checker)
    assert checker.comparisons[0].error == 0.0


def test_a_near_miss_is_not_the_other_order_of_operands() -> None:
    graph = BFLOAT16.before(RMSNorm)
    exchange_operands(graph, "layers.1.input_layernorm")
    find(graph, aten.pow.Tensor_Scalar, "layers.1.input_layernorm").update_arg(1, 3)
    with pytest.raises(PassError, match=r"Nearest misses: pow_\d in .*argument 1 \(exponent\) is 3, expected 2"):
        run_passes(graph, [RMSNorm()])


def test_a_sum_with_a_factor_matches_in_no_order() -> None:
    graph = BFLOAT16.before(Rotary)
    find(graph, aten.add.Tensor, "layers.1.self_attn").kwargs = {"alpha": 2}
    with pytest.raises(
        PassError, match=r"add_\d+ in model\.layers\.1\.self_attn: argument 2 \(alpha\) is 2, expected 1"
    ):
        run_passes(graph, [Rotary()])


def test_what_others_read_as_well_stays() -> None:
    graph = FLOAT32.before(PagedAttention)
    first, second = graph.calls(aten.scaled_dot_product_attention.default)
    second.update_arg(1, first.args[1])
    graph.clean()
    run_passes(graph, [PagedAttention()])
    keys = [attention.args[1] for attention in graph.calls(ops.paged_attention)]
    assert keys == [keys[0]] * LAYERS


def test_a_result_on_the_way_that_others_read_is_a_near_miss() -> None:
    graph = FLOAT32.before(GeluAndMul)
    gelu = find(graph, aten.gelu.default, "layers.1.mlp")
    product = next(iter(gelu.users))
    other = graph.insert(aten.add.Tensor, product, gelu, at=product.next)
    product.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)
    with pytest.raises(PassError, match=r"gelu_1 in .*: is used by mul_\d+ .*, add\w* .*, expected one call of "):
        run_passes(graph, [GeluAndMul()])
