"""Every op that has a formula: the interpreter gives the formula's numbers, over dtypes and forms of its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runners.backends.ascend.interpreter.registry import OPS
from runners.verification.acceptance import by_definition, compare_outputs
from runners.verification.oracle import FORMULAS

GENERATOR = torch.Generator().manual_seed(0)
t = torch.tensor


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


x = randn(3, 7)
h, b = x.half(), x > 0
q = torch.randint(-128, 128, (3, 40), generator=GENERATOR, dtype=torch.int8)
w = torch.randint(-128, 128, (5, 40), generator=GENERATOR, dtype=torch.int8)
i = torch.randint(0, 3, (3, 7), generator=GENERATOR)
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Cast", {"x": x}, {"dst_type": 1}),
    ("Cast", {"x": i}, {"dst_type": 0}),
    ("Cast", {"x": b}, {"dst_type": 3}),
    ("Cast", {"x": i}, {"dst_type": 3}),
    ("Cast", {"x": x}, {"dst_type": 9}),
    ("RealDiv", {"x1": x, "x2": x.abs()[:, :1] + 1}, {}),
    ("FloorMod", {"x1": i * 7 - 5, "x2": t(4)}, {}),
    ("FloorMod", {"x1": i * 7 - 5, "x2": t(-4)}, {}),
    ("SelectV2", {"condition": b, "then": x, "else": x * 2}, {}),
    ("SelectV2", {"condition": b[:, :1], "then": x, "else": t(1.0)}, {}),
    ("Sort", {"x": x}, {"axis": -1, "descending": True}),
    ("Sort", {"x": h}, {"axis": -1, "descending": True}),
    ("GatherElements", {"x": x, "index": i[:, :2]}, {"dim": 1}),
    ("Sub", {"x1": i, "x2": t(1)}, {}),
    ("GreaterEqual", {"x1": x, "x2": x[:, :1]}, {}),
    ("LessEqual", {"x1": x, "x2": x[:, :1]}, {}),
    ("Less", {"x1": i, "x2": i[:, :1]}, {}),
    ("Greater", {"x1": i, "x2": t(0)}, {}),
    ("Equal", {"x1": i, "x2": t(0)}, {}),
    ("SoftmaxV2", {"x": x}, {"axes": [-1]}),
    ("LogSoftmaxV2", {"logits": x}, {"axes": [-1]}),
    ("Cumsum", {"x": x, "axis": t(-1)}, {}),
    ("Cumsum", {"x": h, "axis": t([1])}, {}),
    ("LogicalOr", {"x1": b, "x2": ~b}, {}),
    ("LogicalAnd", {"x1": b, "x2": b[:, :1]}, {}),
    ("LogicalNot", {"x": b}, {}),
    ("ReduceSum", {"x": i, "axes": t([-1])}, {"keep_dims": True}),
    ("ReduceSum", {"x": x, "axes": t([1])}, {}),
    ("ReduceMax", {"x": x, "axes": t([-1])}, {}),
    ("ClipByValueV2", {"x": i, "clip_value_min": t(1), "clip_value_max": t(2)}, {}),
    ("Maximum", {"x1": i, "x2": t(1)}, {}),
    ("Minimum", {"x1": x, "x2": x * 0}, {}),
    ("ReverseV2", {"x": b, "axis": t([1])}, {}),
    ("ArgMaxV2", {"x": x, "dimension": t(-1)}, {}),
    ("ArgMaxV2", {"x": i.int().float(), "dimension": t(-1)}, {}),
    ("ArgMaxWithValue", {"x": x}, {"dimension": -1, "keep_dims": True}),
    ("ArgMaxWithValue", {"x": i.int().float()}, {"dimension": 0}),
    ("TopKV2", {"x": x, "k": t(2)}, {}),
    ("Squeeze", {"x": x[:, None]}, {"axis": [1]}),
    ("Unsqueeze", {"x": x}, {"axes": [1, 2]}),
    ("ZerosLike", {"x": b}, {}),
    ("ZerosLike", {"x": i}, {}),
    ("Fill", {"dims": t([2, 3]), "value": t(1.5)}, {}),
    ("Fill", {"dims": t([2]), "value": t(True)}, {}),
    ("Mul", {"x1": x, "x2": x[:1]}, {}),
    ("FloorDiv", {"x1": i - 5, "x2": t([2]).to(i.dtype)}, {}),
    ("Muls", {"x": h}, {"value": 2.5}),
    ("Muls", {"x": i}, {"value": 2.0}),
    ("Adds", {"x": x}, {"value": 2.5}),
    ("Adds", {"x": i}, {"value": -1.0}),
    ("MaskedFill", {"x": h, "mask": b, "value": t(2.0).half()}, {}),
    ("MaskedFill", {"x": x, "mask": b, "value": t([2.0])}, {}),
    ("Neg", {"x": x}, {}),
    ("Abs", {"x": x}, {}),
    ("Abs", {"x": h}, {}),
    ("Neg", {"x": i}, {}),
    ("Range", {"start": t(0), "limit": t(5), "delta": t(1)}, {}),
    ("BroadcastTo", {"x": b[:, :1], "shape": t([3, 4])}, {}),
    ("BroadcastTo", {"x": i[:, :1], "shape": t([2, 3, 4])}, {}),
    ("ConcatV2", {"x": [x, x], "concat_dim": t(-1)}, {"N": 2}),
    ("Pack", {"x": [i, i + 1]}, {"N": 2, "axis": 0}),
    ("Pack", {"x": [x, h.float(), x]}, {"N": 3, "axis": -1}),
    ("SplitV", {"x": x, "size_splits": t([3, -1]), "split_dim": t(-1)}, {"num_split": 2}),
    ("Slice", {"x": x, "offsets": t([0, 1]), "size": t([-1, 2])}, {}),
    ("StridedSliceV2", {"x": x, "begin": t([1]), "end": t([2147483647]), "axes": t([1]), "strides": t([2])}, {}),
    ("StridedSliceV2", {"x": x, "begin": t(1), "end": t(6), "axes": t(1), "strides": t(3)}, {}),
    ("StridedSliceV2", {"x": x, "begin": t(1), "end": t(3)}, {}),
    ("GatherV2", {"x": h, "indices": i[:, :2], "axis": t([0])}, {}),
    ("GatherV2", {"x": h, "indices": t(1), "axis": t(1)}, {}),
    ("Reshape", {"x": h, "shape": t([7, -1])}, {}),
    ("Transpose", {"x": h[:, None], "perm": t([2, 0, 1])}, {}),
    ("Identity", {"x": b}, {}),
    ("TensorMove", {"x": h}, {}),
    ("Exp", {"x": x * 5}, {}),
    ("Exp", {"x": h}, {}),
    ("Log", {"x": x.abs() * 5}, {}),
    ("Cos", {"x": x * 100}, {}),
    ("Sin", {"x": x * 100}, {}),
    ("RmsNorm", {"x": h, "gamma": h[0]}, {}),
    ("AddRmsNorm", {"x1": h, "x2": h, "gamma": h[0]}, {"epsilon": 1e-5}),
    ("GemmaRmsNorm", {"x": h, "gamma": h[0]}, {}),
    ("BatchMatMul", {"x1": randn(2, 3, 8).half(), "x2": randn(2, 5, 8).half()}, {"adj_x2": True}),
    (
        "IncreFlashAttention",
        {
            "query": randn(2, 1, 64).half(),
            "key": [randn(5, 16, 64).half()],
            "value": [randn(5, 16, 64).half()],
            "actual_seq_lengths": t([5, 20]),
            "block_table": t([[1, 2], [3, 4]]).int(),
        },
        {"num_heads": 2, "scale_value": 0.2, "num_key_value_heads": 2, "block_size": 16},
    ),
    (
        "PromptFlashAttention",
        {
            "query": randn(2, 6, 64).half(),
            "key": randn(2, 6, 64).half(),
            "value": randn(2, 6, 64).half(),
            "atten_mask": torch.ones(2, 1, 6, 6).triu(1).bool(),
        },
        {"num_heads": 2, "scale_value": 0.2, "num_key_value_heads": 2, "next_tokens": 2147483647},
    ),
    ("MatMulV2", {"x1": h, "x2": h[:2], "bias": h[0, :2]}, {"transpose_x2": True}),
    ("MatMul", {"x1": x, "x2": x}, {"transpose_x1": True}),
    (
        "GemmV2",
        {"a": h, "b": h[:2], "alpha": torch.ones(1).half(), "beta": torch.ones(1).half(), "c": randn(3, 2)},
        {"transpose_b": True},
    ),
    ("Add", {"x1": h, "x2": h}, {}),
    ("RotaryMul", {"x": randn(2, 3, 4, 8).half(), "r1": randn(2, 3, 1, 8).half(), "r2": randn(2, 3, 1, 8).half()}, {}),
    ("GeGluV2", {"x": randn(3, 8).bfloat16()}, {"activate_left": True}),
    ("GeGluV2", {"x": randn(3, 8)}, {"approximate": 0}),
    (
        "ScatterPaKvCache",
        {
            "key": randn(2, 1, 4),
            "key_cache": randn(3, 4, 1, 4),
            "slot_mapping": t([9, 2]),
            "value": randn(2, 1, 4),
            "value_cache": randn(3, 4, 1, 4),
        },
        {},
    ),
    (
        "DynamicQuantUpdateScatter",
        {
            "var": torch.ones(3, 2, 4, 32, dtype=torch.int8),
            "var_scale": randn(3, 2, 4, 1),
            "indices": t([[2, 3], [0, 1]]),
            "updates": randn(2, 2, 1, 32).half(),
        },
        {"axis": -2, "reduce": "update"},
    ),
    (
        "FusedInferAttentionScore",
        {
            "query": randn(2, 4, 1, 32).half(),
            "key": [torch.randint(-127, 128, (5, 2, 32, 32)).to(torch.int8)],
            "value": [torch.randint(-127, 128, (5, 2, 32, 32)).to(torch.int8)],
            "actual_seq_lengths_kv": t([5, 50]),
            "block_table": t([[1, 2], [3, 4]]).int(),
            "key_antiquant_scale": randn(5, 2, 32).abs() / 64,
            "value_antiquant_scale": randn(5, 2, 32).abs() / 64,
        },
        {
            "num_heads": 4,
            "num_key_value_heads": 2,
            "scale": 0.2,
            "input_layout": "BNSD",
            "block_size": 32,
            "key_antiquant_mode": 5,
            "value_antiquant_mode": 5,
        },
    ),
    ("ScatterNdUpdate", {"var": randn(5, 3), "indices": t([[4], [0]]), "updates": randn(2, 3)}, {}),
    (
        "FusedInferAttentionScore",
        {
            "query": randn(2, 3, 4, 16).half(),
            "key": [randn(5, 128, 32).half()],
            "value": [randn(5, 128, 32).half()],
            "atten_mask": torch.ones(2048, 2048).triu(1).bool(),
            "actual_seq_lengths": t([3, 2]),
            "actual_seq_lengths_kv": t([5, 130]),
            "block_table": t([[1, 2], [3, 4]]).int(),
        },
        {
            "num_heads": 4,
            "num_key_value_heads": 2,
            "scale": 0.2,
            "input_layout": "BSND",
            "sparse_mode": 3,
            "block_size": 128,
        },
    ),
    ("Select", {"condition": b, "x1": x, "x2": x * 2}, {}),
    ("ClipByValue", {"x": x, "clip_value_min": t(-1.0), "clip_value_max": t(1.0)}, {}),
    ("TopK", {"x": x, "k": t(2)}, {"largest": False}),
    ("AscendQuantV2", {"x": h, "scale": t([40.0]).half()}, {}),
    ("AscendQuantV2", {"x": h, "scale": (h[0].abs() * 60), "offset": h[1]}, {}),
    ("Quantize", {"x": h, "scales": t([[0.02]])}, {"dtype": "torch.qint8"}),
    ("Quantize", {"x": x, "scales": x[:1].abs() / 90, "zero_points": t([[-5.0]])}, {"dtype": "torch.qint8"}),
    ("DynamicQuant", {"x": h}, {}),
    ("DynamicQuant", {"x": (h * b[:, :1]).bfloat16(), "smooth_scales": h[0].bfloat16()}, {}),
    ("AddRmsNorm", {"x1": h.bfloat16(), "x2": h.bfloat16() / 3, "gamma": h[0].bfloat16()}, {}),
    (
        "AddRmsNormQuant",
        {"x1": h, "x2": h / 3, "gamma": h[0], "scales1": t([0.02]), "zero_points1": t([3.0])},
        {"epsilon": 1e-5},
    ),
    ("AddRmsNormDynamicQuant", {"x1": h, "x2": h / 3, "gamma": h[0]}, {"output_mask": [True, False]}),
    ("AddRmsNormDynamicQuant", {"x1": h.bfloat16(), "x2": h.bfloat16() / 3, "gamma": h[0].bfloat16()}, {}),
    ("QuantBatchMatmulV3", {"x1": q, "x2": w.t(), "scale": t([0.01])}, {"dtype": 27}),
    ("QuantBatchMatmulV3", {"x1": q, "x2": w.t(), "scale": t([1.0])}, {"dtype": 3}),
    ("DequantBias", {"x": (q.int() @ w.t().int()), "weight_scale": randn(5).abs() / 99}, {"output_dtype": 27}),
    (
        "QuantBatchMatmulV3",
        {
            "x1": q,
            "x2": w,
            "scale": (randn(5) / 99).view(torch.int32).long() & 0xFFFFE000 | 1 << 46,
            "bias": torch.arange(-2, 3).int() * 1000,
        },
        {"dtype": 1, "transpose_x2": True},
    ),
    (
        "QuantBatchMatmulV3",
        {"x1": q, "x2": w, "scale": randn(5) / 99, "pertoken_scale": randn(3).abs()},
        {"dtype": 1, "transpose_x2": True},
    ),
    ("WeightQuantBatchMatmulV2", {"x": randn(3, 40).half(), "weight": w.t(), "antiquant_scale": h[0, :5] / 99}, {}),
    (
        "WeightQuantBatchMatmulV2",
        {"x": randn(3, 40).half(), "weight": w, "antiquant_scale": h[0, :5] / 99, "antiquant_offset": h[1, :5]},
        {"transpose_weight": True},
    ),
]


def clones(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [v.clone() for v in value] if isinstance(value, list) else value.clone() for name, value in inputs.items()
    }


@pytest.mark.parametrize(("op", "inputs", "attrs"), CASES)
def test_the_interpreter_computes_the_formula(op: str, inputs: dict[str, Any], attrs: dict[str, Any]) -> None:
    expected = by_definition(op, clones(inputs), attrs)
    arguments = [clones(inputs).get(name) for name, _ in OPS[op].inputs]
    while arguments[-1] is None:
        arguments.pop()
    found = OPS[op].kernel(*arguments, **attrs)
    outputs = list(found) if isinstance(found, tuple) else [found]
    error, problem = compare_outputs(expected, outputs[: len(expected)], "the interpreter", "the formula")
    assert not problem, (error, problem)


def test_int8_is_one_of_the_nearest_integers() -> None:
    exact = t([0.5, 1.4, -0.6, 400.0], dtype=torch.float64)
    for found, wrong in (([0, 1, -1, 127], 0), ([1, 1, -1, 127], 0), ([0, 2, -1, 127], 1), ([0, 1, 0, 126], 2)):
        error, problem = compare_outputs([exact], [t(found).to(torch.int8)], "the interpreter", "the formula")
        assert (error, bool(problem)) == (wrong / 4, wrong > 0)


def test_a_device_may_round_few_integers_the_other_way() -> None:
    expected = torch.zeros(1000, dtype=torch.int8)
    for changes, who, wrong in (
        ({5: 1}, "the device", False),
        ({5: 1}, "the stand-in", True),
        ({5: 2}, "the device", True),
        ({5: 1, 6: -1}, "the device", True),
    ):
        found = expected.clone()
        for index, value in changes.items():
            found[index] = value
        assert bool(compare_outputs([expected], [found], who, "the interpreter")[1]) == wrong, (changes, who)


def test_every_formula_is_tried() -> None:
    assert FORMULAS.keys() == {op for op, _, _ in CASES}
