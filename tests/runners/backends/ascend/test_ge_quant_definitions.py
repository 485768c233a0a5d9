"""Quantized ops and batched products, each alone, against numpy in int64 and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.ge_graphs import assert_rounded, covers, run_op
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError

HALVES = (torch.float16, torch.bfloat16)
GE = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.int32: 3, torch.bfloat16: 27}


def wide(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bytes_(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def quantized(x: np.ndarray) -> np.ndarray:
    """Nearest integers, ties to even, saturated."""
    return np.clip(np.rint(x), -128, 127)


def assert_integers(found: Tensor, exact: np.ndarray, slack: float = 1e-4) -> None:
    """The integers nearest to `exact`; one that lies within `slack` of a tie may be rounded to the other side."""
    assert found.dtype is torch.int8
    assert found.shape == exact.shape
    distance = np.abs(exact - np.floor(exact) - 0.5)
    off = np.abs(wide(found) - quantized(exact))
    assert off.max(initial=0) <= 1
    assert not (off[distance > slack] > 0).any()
    assert (off > 0).mean() < 0.01 if off.size > 100 else True


@covers("BatchMatMulV2")
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize(("adj_x1", "adj_x2"), [(False, False), (True, False), (False, True), (True, True)])
def test_batched_products_with_a_bias(dtype: torch.dtype, adj_x1: bool, adj_x2: bool) -> None:
    for left, right, batch in (((3, 1), (1, 4), (3, 4)), ((2,), (2,), (2,)), ((1,), (5,), (5,)), ((0,), (1,), (0,))):
        for m, k, n in ((1, 1, 1), (3, 7, 5), (2, 0, 3)):
            a, b, bias = (randn(*left, m, k).to(dtype), randn(*right, k, n, seed=1).to(dtype), randn(n).to(dtype))
            exact = np.zeros((*batch, m, n)) + wide(bias)
            for j in range(k):
                exact = exact + wide(a)[..., :, j, None] * wide(b)[..., None, j, :]
            inputs = {"x1": a.mT.contiguous() if adj_x1 else a, "x2": b.mT.contiguous() if adj_x2 else b, "bias": bias}
            (found,) = run_op("BatchMatMulV2", inputs, adj_x1=adj_x1, adj_x2=adj_x2)
            assert found.dtype == dtype
            if dtype is torch.float32:
                np.testing.assert_allclose(found.numpy(), exact, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_allclose(wide(found), exact, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-6)
    big = torch.full((1, 1, 2), 60000.0).half()
    opposite = torch.tensor([[[1.0], [-1.0]]]).half()
    assert run_op("BatchMatMulV2", {"x1": big, "x2": opposite.abs()})[0].item() == math.inf
    assert run_op("BatchMatMulV2", {"x1": big, "x2": opposite})[0].item() == 0.0
    with pytest.raises(GeGraphError, match="offset"):
        run_op("BatchMatMulV2", {"x1": big, "x2": opposite}, offset_x=1)


@covers("WeightQuantBatchMatmulV2")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_products_with_an_int8_weight(dtype: torch.dtype, transposed: bool, offset: bool, per_tensor: bool) -> None:
    for m, k, n in ((1, 1, 1), (3, 129, 7), (1, 64, 33), (0, 8, 3)):
        x, weight = randn(m, k).to(dtype), bytes_(k, n)
        columns = 1 if per_tensor else n
        scale = (randn(columns, seed=1).abs() * 0.02 + 1e-3).to(dtype)
        shift = torch.arange(columns).remainder(7).sub(3).to(dtype)
        inputs = {"x": x, "weight": weight.t().contiguous() if transposed else weight, "antiquant_scale": scale}
        if offset:
            inputs["antiquant_offset"] = shift
        (found,) = run_op("WeightQuantBatchMatmulV2", inputs, transpose_weight=transposed)
        # The matrix unit multiplies 16-bit numbers: a weight is rounded once, after it was shifted and scaled.
        integers = weight.long().numpy() + shift.long().numpy() * offset
        entering = wide(torch.from_numpy(integers * wide(scale)).to(dtype))
        exact = np.einsum("mk,kn->mn", wide(x), entering)
        assert found.dtype == dtype
        np.testing.assert_allclose(wide(found), exact, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-5)
        unrounded = np.einsum("mk,kn->mn", wide(x), integers * wide(scale))
        largest = np.abs(unrounded).max(initial=1e-3)
        assert np.abs(wide(found) - unrounded).max(initial=0) <= 2 * torch.finfo(dtype).eps * max(largest, 1.0)


def test_an_int8_weights_extremes_are_exact_or_overflow() -> None:
    x, one = torch.tensor([[1.0, 1.0]]).half(), torch.tensor([1.0]).half()
    weight = torch.tensor([[127, -128, 127], [127, -128, -128]], dtype=torch.int8)
    found = run_op("WeightQuantBatchMatmulV2", {"x": x, "weight": weight, "antiquant_scale": one})[0]
    assert found.tolist() == [[254.0, -256.0, -1.0]]
    large = run_op("WeightQuantBatchMatmulV2", {"x": x, "weight": weight, "antiquant_scale": one * 400})[0]
    assert large.tolist() == [[math.inf, -math.inf, -384.0]]  # 50816, which is 127 * 400 in fp16, - 51200
    beyond = run_op("WeightQuantBatchMatmulV2", {"x": x, "weight": weight, "antiquant_scale": one * 600})[0]
    assert beyond.isnan().tolist() == [[False, False, True]]  # the weight itself is beyond fp16: inf - inf


@pytest.mark.parametrize(
    ("inputs", "attrs", "message"),
    [
        ({"x": torch.ones(1, 2)}, {}, "x is"),
        ({"weight": torch.ones(2, 3)}, {}, "weight is"),
        ({"antiquant_scale": torch.ones(3)}, {}, "one dtype"),
        ({"antiquant_scale": torch.ones(2).half()}, {}, "2 scales for 3 columns"),
        ({}, {"antiquant_group_size": 32}, "groups"),
        ({}, {"transpose_x": True}, "transposed x"),
        ({}, {"dtype": GE[torch.int8]}, "dtype"),
        ({}, {"inner_precise": 1}, "inner_precise"),
        ({"bias": torch.ones(3).half()}, {}, "bias"),
    ],
)
def test_other_products_with_an_int8_weight_are_refused(
    inputs: dict[str, Tensor], attrs: dict[str, object], message: str
) -> None:
    legal = {"x": torch.ones(1, 2).half(), "weight": torch.ones(2, 3, dtype=torch.int8),
             "antiquant_scale": torch.ones(3).half()}  # fmt: skip
    run_op("WeightQuantBatchMatmulV2", legal, dtype=-1)
    with pytest.raises(GeGraphError, match=message):
        run_op("WeightQuantBatchMatmulV2", {**legal, **inputs}, **attrs)


@covers("QuantBatchMatmulV3", "TransQuantParamV2")
@pytest.mark.parametrize("output", HALVES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_int8_products_in_64_bit_integers(output: torch.dtype, transposed: bool, per_tensor: bool) -> None:
    for m, k, n in ((1, 1, 1), (3, 1025, 7), (2, 64, 1), (0, 4, 3)):
        a, b = bytes_(m, k), bytes_(k, n, seed=1)
        bias = torch.arange(n, dtype=torch.int32) * 1001 - 500
        scale = randn(1 if per_tensor else n).abs() * 1e-3 + 1e-5
        (packed,) = run_op("TransQuantParamV2", {"scale": scale})
        bits = scale.numpy().view(np.uint32).astype(np.int64)
        assert packed.tolist() == ((bits - bits % 2**13) + 2**46).tolist()
        integers = np.einsum("mk,kn->mn", a.numpy().astype(np.int64), b.numpy().astype(np.int64)) + bias.numpy()
        kept = (bits - bits % 2**13).astype(np.uint32).view(np.float32).astype(np.float64)
        inputs = {"x1": a, "x2": b.t().contiguous() if transposed else b, "bias": bias}
        (found,) = run_op("QuantBatchMatmulV3", {**inputs, "scale": packed}, dtype=GE[output], transpose_x2=transposed)
        assert_rounded(found, integers * kept)
        tokens = randn(m).abs() + 0.1
        (found,) = run_op("QuantBatchMatmulV3", {**inputs, "scale": scale, "pertoken_scale": tokens},
                          dtype=GE[output], transpose_x2=transposed)  # fmt: skip
        assert_rounded(found, integers * wide(scale) * wide(tokens)[:, None], 0.52)
    one = torch.ones(1, 600, dtype=torch.int8)
    found = run_op("QuantBatchMatmulV3", {"x1": one * 127, "x2": one.t() * 127, "scale": packed[:1] * 0 + 2**46
                                          + int(np.float32(1.0).view(np.int32))}, dtype=GE[torch.float16])  # fmt: skip
    assert found[0].item() == math.inf  # 600 * 127 * 127


@covers("DequantBias")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (0, 5)], ids=str)
def test_dequant_bias_scales_int32_and_rounds_once(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int64, generator=torch.Generator().manual_seed(1))
    x, scale = x.to(torch.int32), torch.rand(shape[1], generator=torch.Generator().manual_seed(2)) * 1e-6
    (found,) = run_op("DequantBias", {"x": x, "weight_scale": scale}, output_dtype=GE[dtype])
    assert found.dtype is dtype
    assert_rounded(found, wide(x) * wide(scale))
    for wrong in ({"x": x.float()}, {"bias": scale}, {"activate_scale": scale}):
        with pytest.raises(GeGraphError):
            run_op("DequantBias", {"x": x, "weight_scale": scale, **wrong}, output_dtype=GE[dtype])
    with pytest.raises(GeGraphError, match="16-bit floats"):
        run_op("DequantBias", {"x": x, "weight_scale": scale}, output_dtype=GE[torch.float32])


@covers("AscendQuantV2", "Quantize")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_static_quantization(dtype: torch.dtype, per_tensor: bool) -> None:
    for shape in ((1, 1), (3, 65), (2, 1, 9), (0, 5)):
        x = (randn(*shape) * 40).to(dtype)
        size = 1 if per_tensor else shape[-1]
        scale, offset = (randn(size).abs() + 0.2).to(dtype), torch.arange(size).remainder(9).sub(4).to(dtype)
        (found,) = run_op("AscendQuantV2", {"x": x, "scale": scale, "offset": offset}, dst_type=GE[torch.int8])
        assert_integers(found, wide(x) * wide(scale) + wide(offset))
        by = scale.float() if dtype is torch.float16 else scale
        inputs = {"x": x, "scales": by, "zero_points": offset.int()}
        (found,) = run_op("Quantize", inputs, dtype="torch.qint8", axis=len(shape) - 1)
        assert_integers(found, wide(x) / wide(by) + wide(offset))
    ends = torch.tensor([[math.inf, -math.inf, 127.5, -128.5, 126.5, 0.5, 1.5, -0.5]]).to(dtype)
    one = torch.ones(1).to(dtype)
    expected = quantized(wide(ends)).tolist()
    assert run_op("AscendQuantV2", {"x": ends, "scale": one})[0].tolist() == expected
    assert run_op("Quantize", {"x": ends, "scales": one.float()}, dtype="torch.qint8")[0].tolist() == expected


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("AscendQuantV2", {"scale": torch.ones(1).half()}, {}),
        ("Quantize", {"scales": torch.ones(1)}, {"dtype": "torch.qint8"}),
        ("DynamicQuant", {}, {}),
    ],
)
def test_nan_has_no_integer(op: str, inputs: dict[str, Tensor], attrs: dict[str, object]) -> None:
    with pytest.raises(GeGraphError, match="NaN"):
        run_op(op, {"x": torch.tensor([[1.0, math.nan]]).half(), **inputs}, 2 if op == "DynamicQuant" else 1, **attrs)


@covers("DynamicQuant")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("smooth", [False, True])
def test_dynamic_quantization(dtype: torch.dtype, smooth: bool) -> None:
    for shape in ((1, 1), (3, 129), (2, 3, 8), (0, 4)):
        x = (randn(*shape) * 10).to(dtype)
        factors = (randn(shape[-1], seed=1).abs() + 0.5).to(dtype)
        inputs = {"x": x, "smooth_scales": factors} if smooth else {"x": x}
        y, scale = run_op("DynamicQuant", inputs, 2)
        exact = wide(x) * wide(factors) if smooth else wide(x)
        assert scale.dtype is torch.float32
        largest = np.abs(exact).max(-1)
        assert_rounded(scale, largest / 127, 1.01)
        assert_integers(y, exact * 127 / largest[..., None])
        assert (np.abs(wide(y)).max(-1) == 127).all()
    with pytest.raises(GeGraphError, match="int32"):
        run_op("DynamicQuant", {"x": x}, 2, dst_type=GE[torch.int32])


def normed(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> np.ndarray:
    """The RMS norm of the rounded sum, by the definition."""
    total = wide((x1.double() + x2.double()).to(x1.dtype))
    return total / np.sqrt((total**2).mean(-1, keepdims=True) + epsilon) * wide(gamma)


@covers("AddRmsNormDynamicQuant")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_norm_and_dynamic_quantization(dtype: torch.dtype, epsilon: float) -> None:
    for shape in ((1, 1), (5, 301), (2, 3, 64), (0, 8)):
        x1, x2 = (randn(*shape) * 3).to(dtype), randn(*shape, seed=1).to(dtype)
        gamma = (randn(shape[-1], seed=2) + 1).to(dtype)
        attrs = {"epsilon": epsilon, "output_mask": [True, False], "dst_type": GE[torch.int8]}
        y, _, total, scale, _ = run_op("AddRmsNormDynamicQuant", {"x1": x1, "x2": x2, "gamma": gamma}, 5, **attrs)
        exact = normed(x1, x2, gamma, epsilon)
        largest = np.abs(exact).max(-1)
        assert torch.equal(total, (x1.double() + x2.double()).to(dtype))
        assert total.dtype == dtype
        assert scale.dtype is torch.float32
        np.testing.assert_allclose(scale.numpy(), largest / 127, rtol=1e-6)
        assert_integers(y, exact * 127 / largest[..., None])


def test_norm_and_dynamic_quantization_of_zeros_and_overflow() -> None:
    zeros, gamma = torch.zeros(2, 4).half(), torch.ones(4).half()
    y, _, total, scale, _ = run_op("AddRmsNormDynamicQuant", {"x1": zeros, "x2": zeros, "gamma": gamma}, 5)
    assert (y.tolist(), scale.tolist(), total.tolist()) == ([[0] * 4] * 2, [0.0, 0.0], zeros.tolist())
    large = torch.full((1, 4), 60000.0).half()
    with pytest.raises(GeGraphError, match="NaN"):  # inf / inf
        run_op("AddRmsNormDynamicQuant", {"x1": large, "x2": large, "gamma": gamma}, 5)
    large = large.bfloat16()
    y, _, total, _, _ = run_op("AddRmsNormDynamicQuant", {"x1": large, "x2": large, "gamma": gamma.bfloat16()}, 5)
    assert y.tolist() == [[127] * 4]
    assert bool(total.isfinite().all())


@pytest.mark.parametrize(
    ("inputs", "attrs", "message"),
    [
        ({"x1": torch.ones(1, 4)}, {}, "x1 is"),
        ({"gamma": torch.ones(4)}, {}, "one dtype"),
        ({"smooth_scale1": torch.ones(4).half()}, {}, "smooth_scale1"),
        ({"beta": torch.ones(4).half()}, {}, "beta"),
        ({}, {"output_mask": [True, True]}, "output_mask"),
        ({}, {"dst_type": GE[torch.float16]}, "dst_type"),
    ],
)
def test_other_norms_with_dynamic_quantization_are_refused(
    inputs: dict[str, Tensor], attrs: dict[str, object], message: str
) -> None:
    one = torch.ones(1, 4).half()
    with pytest.raises(GeGraphError, match=message):
        run_op("AddRmsNormDynamicQuant", {"x1": one, "x2": one, "gamma": one[0], **inputs}, 5, **attrs)


@covers("AddRmsNormQuant")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("divide", [True, False])
def test_norm_and_static_quantization(dtype: torch.dtype, divide: bool) -> None:
    for shape in ((1, 1), (5, 301), (2, 3, 64), (0, 8)):
        x1, x2 = (randn(*shape) * 3).to(dtype), randn(*shape, seed=1).to(dtype)
        gamma, scale = (randn(shape[-1], seed=2) + 1).to(dtype), randn(shape[-1], seed=3).abs() * 0.02 + 0.01
        scale = scale if divide else 1 / scale
        zero = torch.arange(shape[-1], dtype=torch.int32).remainder(9) - 4
        for scales, zeros in ((scale, zero), (scale[:1], zero[:1])):
            if scales.numel() == 1 and not divide:
                continue
            inputs = {"x1": x1, "x2": x2, "gamma": gamma, "scales1": scales, "zero_points1": zeros}
            y, _, total = run_op("AddRmsNormQuant", inputs, 3, div_mode=divide)
            exact = normed(x1, x2, gamma, 1e-6)
            exact = exact / wide(scales) if divide else exact * wide(scales)
            assert torch.equal(total, (x1.double() + x2.double()).to(dtype))
            # 16-bit roundings in between move a value of up to 128 by up to three halves of its last place.
            off = np.abs(wide(y) - np.clip(exact + wide(zeros), -128, 127))
            assert off.max(initial=0) <= 0.5 + 1.5 * 128 * torch.finfo(dtype).eps
