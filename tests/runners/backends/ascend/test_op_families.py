"""Op families: each op is whole, chips and families name the same ops, and another op is described in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.chips import with_limits
from support.ge_graphs import data, graph, node
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.ascend.ops import BY_GE_TYPE, BY_TORCH_NAME, OPS
from graph_gemma.graph_model.ascend.ops.op import AscendOp
from graph_gemma.graph_model.ascend.traffic import work_of
from graph_gemma.graph_model.ascend.work import Operands, per_element
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.graph_model.chips.chip import Chip, Limits
from graph_gemma.graph_model.chips.registry import CHIPS
from graph_gemma.passes.framework import attributes
from graph_gemma.runners.backends.ascend.interpreter import ops as _ops  # noqa: F401  (fills the registry)
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS as INTERPRETED


def test_chips_and_families_name_the_same_ops() -> None:
    assert {op for chip in CHIPS.values() for op in chip.ops} == set(BY_GE_TYPE)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.torch_name)
def test_an_op_is_described_in_full(op: AscendOp) -> None:
    ours = op.torch_name.startswith("ascend::")
    assert bool(op.schema) == bool(op.fake) == ours
    assert op.cpu is not None or op.torch_name == "ascend::dynamic_quant_scatter", "it is never run in a graph"
    if ours and op.functionalize is None:
        assert op.convert is not None, "torchair knows none of our ops"
    if ours:
        names = {argument.name for argument in getattr(torch.ops.ascend, op.torch_name[8:]).default._schema.arguments}
        assert {argument for argument, _ in op.carries.values()} <= names


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.torch_name)
def test_the_interpreter_executes_an_op_and_knows_its_attributes(op: AscendOp) -> None:
    spec = INTERPRETED[op.ge_type]
    assert {attribute for _, attribute in op.carries.values()} <= {*spec.defaults, *spec.required_attrs}
    if op.in_place:
        assert spec.by_reference.keys() == op.in_place.keys()


def double(x: Tensor, scale: float = 2.0) -> Tensor:
    return x * scale


def check_width(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    width = (inputs["x"].shape or (0,))[-1]
    if width > (chip.limits("Double").max_head_dim or width):
        raise GeGraphError(f"{width} is too wide")


def doubled(width: int) -> GeGraph:
    x, op = data("x", 0, torch.float16, (4, width)), node("Double", "op", {"x": "x"}, scale=2.0)
    op.outputs = [TensorDesc("y", torch.float16, (4, width))]
    return graph(x, op, output=("op",))


def test_the_recipe_for_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/recipes.md, "An Ascend op": its family's file and the chip's table are all that is read of it."""
    toy = AscendOp(
        torch_name="ascend::toy_double",
        ge_type="Double",
        schema="(Tensor x, float scale=2.0) -> Tensor",
        fake=lambda x, scale=2.0: torch.empty_like(x),
        cpu=double,
        check=check_width,
        work=per_element(3),
        carries={"softmax_scale": ("scale", "scale")},
    )
    toy.define()
    monkeypatch.setitem(BY_GE_TYPE, toy.ge_type, toy)
    monkeypatch.setitem(BY_TORCH_NAME, toy.torch_name, toy)
    with FakeTensorMode():
        assert torch.ops.ascend.toy_double(torch.empty(4, 8)).shape == (4, 8)

    chip = with_limits(ATLAS_800I_A2, "Double", Limits(max_head_dim=8))
    check_graph(doubled(8), chip)
    for width, refused, reason in ((8, ATLAS_800I_A2, "no such op"), (16, chip, "16 is too wide")):
        with pytest.raises(GeGraphError, match=reason):
            check_graph(doubled(width), refused)

    ge = doubled(8)
    descs = {("x", 0): ge.nodes[0].outputs[0], ("op", 0): ge.nodes[1].outputs[0]}
    work = work_of(ge.nodes[1], Operands.of(ge.nodes[1], descs))
    assert (work.read, work.written, work.vector) == (64, 64, 96)
    other = replace(ge.nodes[1], type="Elsewhere")
    assert work_of(other, Operands.of(other, descs)).vector == 32, "one operation where nothing is said"

    torch_graph = fx.Graph()
    x = torch_graph.placeholder("x")
    target: Any = torch.ops.ascend.toy_double.default
    calls = [torch_graph.call_function(target, args) for args in ((x, 0.125), (x,))]
    assert [attributes._softmax_scale(call) for call in calls] == [0.125, None]
