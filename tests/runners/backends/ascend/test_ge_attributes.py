"""An attribute's value changes the result as the op says, or is refused; few are ignored, whatever they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.ge_graphs import run_op

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS

x, halves = torch.arange(6.0).view(2, 3), torch.ones(1, 4, 2, 16).half()  # halves: [batch, tokens, heads, head_dim]
query = halves[:, :1]
OPS_WITH_LEGAL_ATTRS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {  # inputs, outputs, attributes
    "Assign": ({"ref": x.clone(), "value": x}, 1, {"validate_shape": True}),
    "FusedInferAttentionScore": (
        {"query": query, "key": [halves], "value": [halves]},
        2,
        {"num_heads": 2, "input_layout": "BSND", "inner_precise": 0, "antiquant_mode": 0, "query_quant_mode": 0,
         "pse_type": 0, "out_dtype": 0},
    ),
    "Gather": ({"x": x, "indices": torch.tensor([1])}, 1, {"is_preprocessed": False, "validate_indices": True}),
    "GatherV2": ({"x": x, "indices": torch.tensor([1]), "axis": torch.tensor(1)}, 1, {"is_preprocessed": False}),
    "IncreFlashAttention": (
        {"query": query, "key": [halves], "value": [halves]},
        1,
        {"num_heads": 2, "num_key_value_heads": 0, "input_layout": "BSND", "inner_precise": 1},
    ),
    "MatMul": ({"x1": x, "x2": x.t()}, 1, {}),
    "MatMulV2": ({"x1": x, "x2": x.t()}, 1, {}),
    "PromptFlashAttention": (
        {"query": halves, "key": halves, "value": halves},
        1,
        {"num_heads": 2, "num_key_value_heads": 0, "input_layout": "BSND", "next_tokens": 9, "inner_precise": 1},
    ),
    "QuantBatchMatmulV3": (
        {"x1": torch.ones(2, 3).char(), "x2": torch.ones(3, 4).char(), "scale": torch.ones(4)}, 1, {"dtype": 27},
    ),
    "Quantize": ({"x": x, "scales": torch.ones(1, 3)}, 1, {"dtype": "torch.qint8", "axis": 1}),
    "Range": ({"start": torch.tensor(0), "limit": torch.tensor(3), "delta": torch.tensor(1)}, 1, {}),
    "TopK": ({"x": x, "k": torch.tensor(2)}, 2, {"sorted": True}),
    "TopKV2": ({"x": x, "k": torch.tensor(2)}, 2, {"sorted": True, "sort_policy": 1}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        ("Assign", "validate_shape", False),
        ("FusedInferAttentionScore", "antiquant_mode", 1),
        ("FusedInferAttentionScore", "inner_precise", 1),
        ("FusedInferAttentionScore", "out_dtype", 1),
        ("FusedInferAttentionScore", "pse_type", 2),
        ("FusedInferAttentionScore", "query_quant_mode", 3),
        ("Gather", "is_preprocessed", True),
        ("Gather", "validate_indices", False),
        ("GatherV2", "is_preprocessed", True),
        ("IncreFlashAttention", "inner_precise", 2),
        ("MatMul", "opImplMode", 64),
        ("MatMulV2", "op_impl_mode_enum", 64),
        ("PromptFlashAttention", "inner_precise", 3),
        ("QuantBatchMatmulV3", "op_impl_mode_enum", 64),
        ("Quantize", "axis", 0),
        ("Quantize", "axis", 2),
        ("Range", "is_closed", True),
        ("TopK", "sorted", False),
        ("TopKV2", "sorted", False),
        ("TopKV2", "sort_policy", 0),
    ],
)
def test_a_value_that_is_not_modelled_is_refused(op: str, name: str, value: object) -> None:
    inputs, outputs, legal = OPS_WITH_LEGAL_ATTRS[op]
    run_op(op, inputs, outputs, **legal)
    with pytest.raises(GeGraphError, match=rf"^{op} op: .*({name}|dimension) .*{value}|^{op} op: .*'{name}'"):
        run_op(op, inputs, outputs, **{**legal, name: value})


@pytest.mark.parametrize(("name", "value"), [("comm_turn", 4), ("comm_mode", "ccu")])
def test_other_ways_to_join_a_product_with_its_sum_are_refused(name: str, value: object) -> None:
    pair = {"x1": halves[0, :, 0], "x2": halves[0, :, 0].t()}
    with pytest.raises(GeGraphError, match=rf"MatmulAllReduce op: .*{name} {value!r}"):
        run_op("MatmulAllReduce", pair, group="tag=ptd:0;rank_list=0,7", **{name: value})


def test_scales_of_quantize_lie_along_its_axis() -> None:
    scales = torch.tensor([1.0, 0.5])
    (found,) = run_op("Quantize", {"x": x, "scales": scales[:, None]}, dtype="torch.qint8", axis=-2)
    assert found.tolist() == [[0, 1, 2], [6, 8, 10]]
    (found,) = run_op("Quantize", {"x": x, "scales": scales[:1]}, dtype="torch.qint8", axis=0)
    assert found.tolist() == x.int().tolist()
    with pytest.raises(GeGraphError, match=r"zero_points \[2, 1\] along axis 1"):
        run_op(
            "Quantize",
            {"x": x, "scales": torch.ones(1, 3), "zero_points": scales[:, None]},
            dtype="torch.qint8",
            axis=1,
        )


def test_decode_and_prompt_attention_take_both_inner_precisions() -> None:
    for op in ("IncreFlashAttention", "PromptFlashAttention"):
        inputs, outputs, legal = OPS_WITH_LEGAL_ATTRS[op]
        precise, fast = (run_op(op, inputs, outputs, **{**legal, "inner_precise": mode})[0] for mode in (0, 1))
        assert torch.equal(precise, fast)


def test_only_what_cannot_change_a_result_is_ignored() -> None:
    ignored = {(name, attribute) for name, spec in OPS.items() for attribute in spec.ignored}
    collectives = ("HcomAllGather", "HcomAllReduce", "HcomBroadcast", "HcomReduceScatter")
    merging = {(name, attribute) for name in collectives for attribute in ("fusion", "fusion_id")}
    assert ignored == merging | {("Assign", "use_locking"), ("ScatterNdUpdate", "use_locking")}
