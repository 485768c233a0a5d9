"""Matrix products, norms, rotary embedding, activations: values and the points where they are rounded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops import activation, elementwise, matmul, norm, reduction
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.verification import oracle as formulas

HALVES = [torch.float16, torch.bfloat16]


def ulps(got: Tensor, expected: Tensor) -> float:
    """Largest distance from a float64 result, in units in the last place of got's dtype at that magnitude."""
    exponent = torch.floor(torch.log2(expected.abs().clamp(min=1e-3)))
    unit = torch.finfo(got.dtype).eps * 2.0**exponent
    return ((got.double() - expected).abs() / unit).max().item()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("transpose_x1", [False, True])
@pytest.mark.parametrize("transpose_x2", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul_rounds_once(dtype: torch.dtype, transpose_x1: bool, transpose_x2: bool, bias: bool) -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 70).to(dtype), torch.randn(70, 5).to(dtype), torch.randn(5).to(dtype)
    expected = a.double() @ b.double() + (c.double() if bias else 0)
    got = matmul.mat_mul(
        a.t() if transpose_x1 else a,
        b.t() if transpose_x2 else b,
        c if bias else None,
        transpose_x1=transpose_x1,
        transpose_x2=transpose_x2,
    )
    assert got.dtype == dtype
    if dtype is torch.float32:
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    else:
        assert ulps(got, expected) < 0.51


def test_matmul_accumulates_beyond_fp16_and_then_overflows() -> None:
    ones = torch.full((1, 3), 300.0).half()
    weight = torch.tensor([[300.0, 300.0], [300.0, 300.0], [-300.0, 300.0]]).half()
    got = matmul.mat_mul(ones, weight)
    assert got[0].tolist() == [math.inf, math.inf]
    assert matmul.mat_mul(torch.full((1, 2), 60000.0).half(), torch.tensor([[1.0], [-1.0]]).half()).item() == 0.0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_gemm_adds_to_what_it_is_given_in_fp32(dtype: torch.dtype, transpose_a: bool, transpose_b: bool) -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 70).to(dtype), torch.randn(70, 5).to(dtype), torch.randn(3, 5)
    one, before = torch.ones(1, dtype=dtype), c.clone()
    got = matmul.gemm_v2(
        a.t() if transpose_a else a,
        b.t() if transpose_b else b,
        one,
        one,
        c,
        transpose_a=transpose_a,
        transpose_b=transpose_b,
    )
    assert got is c
    torch.testing.assert_close(got.double(), a.double() @ b.double() + before.double(), rtol=1e-6, atol=1e-5)
    assert not torch.equal(got, got.to(dtype).float())
    assert matmul.gemm_v2(a[:0], b, one, one, c[:0]).shape == (0, 5)


def test_gemm_refuses_what_the_op_does_not_take() -> None:
    one = torch.ones(1).half()
    right = {"a": torch.ones(2, 3).half(), "b": torch.ones(3, 4).half(), "alpha": one, "beta": one}
    right["c"] = torch.zeros(2, 4)
    for wrong, message in (
        ({"c": torch.zeros(2, 4).half()}, "takes float32"),
        ({"c": torch.zeros(1, 4)}, "the result's shape"),
        ({name: right[name].float() for name in ("a", "b", "alpha", "beta")}, "takes float16, bfloat16"),
        ({"b": right["b"].bfloat16()}, "one dtype"),
        ({"a": right["a"][None]}, "takes matrices"),
        ({"b": right["b"].t()}, "inner sizes"),
        ({"beta": 0 * one}, "other than 1"),
    ):
        with pytest.raises(GeGraphError, match=message):
            matmul.gemm_v2(**{**right, **wrong})


def test_matmul_refuses_mixed_dtypes_and_ranks() -> None:
    with pytest.raises(GeGraphError, match="one dtype"):
        matmul.mat_mul(torch.ones(2, 3).half(), torch.ones(3, 2))
    with pytest.raises(GeGraphError, match="takes matrices"):
        matmul.mat_mul(torch.ones(1, 2, 3), torch.ones(3, 2))
    with pytest.raises(GeGraphError, match="inner sizes"):
        matmul.mat_mul(torch.ones(2, 3), torch.ones(2, 3))


def test_batched_matmul_broadcasts_and_transposes() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 1, 3, 8).half(), torch.randn(2, 5, 8).half()
    got = matmul.batch_mat_mul(a, b, adj_x2=True)
    assert ulps(got, torch.einsum("abmk,bnk->abmn", a.double().expand(4, 2, 3, 8), b.double())) < 0.51


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gamma_dtype", ["same", "float32"])
def test_rms_norm_rounds_once(dtype: torch.dtype, gamma_dtype: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 200).to(dtype) * 3
    gamma = (torch.rand(200) + 0.5).to(dtype if gamma_dtype == "same" else torch.float32)
    y, rstd = norm.rms_norm(x, gamma, epsilon=1e-5)
    assert ulps(y, formulas.rms_norm(x, gamma, 1e-5)) < 0.51
    assert rstd.shape == (4, 1)
    assert rstd.dtype is torch.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_gemma_rms_norm_adds_one_in_fp32_and_rounds_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gamma = torch.randn(4, 200).to(dtype), (torch.randn(200) * 1e-3).to(dtype)
    y, _ = norm.gemma_rms_norm(x, gamma)
    assert ulps(y, formulas.rms_norm(x, 1 + gamma.double(), 1e-6)) < 0.51
    with pytest.raises(GeGraphError, match="one dtype"):
        norm.gemma_rms_norm(x, gamma.float())


@pytest.mark.parametrize("dtype", HALVES)
def test_add_rms_norm_rounds_sum_quotient_and_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x1, x2, gamma = (torch.randn(*shape).to(dtype) for shape in ((4, 200), (4, 200), (200,)))
    y, _, total = norm.add_rms_norm(x1, x2, gamma)
    rounded_sum = (x1.double() + x2.double()).to(dtype)
    quotient = formulas.rms_norm(rounded_sum, torch.ones(200), 1e-6).to(dtype)
    assert torch.equal(total, rounded_sum)
    off = (y != (quotient.double() * gamma.double()).to(dtype)).double().mean()
    assert off < 0.02  # fp32 against float64 before the first rounding
    assert ulps(y, formulas.rms_norm(rounded_sum, gamma, 1e-6)) > 0.6  # more than one rounding


def test_rms_norm_over_two_dimensions() -> None:
    x, gamma = torch.randn(2, 3, 4), torch.rand(3, 4)
    y, rstd = norm.rms_norm(x, gamma)
    assert rstd.shape == (2, 1, 1)
    torch.testing.assert_close(y, formulas.rms_norm(x.flatten(1), gamma.flatten(), 1e-6).float().view(2, 3, 4))


def test_rotary_rounds_per_product_in_fp16_and_once_in_bf16() -> None:
    torch.manual_seed(0)
    for dtype in HALVES:
        x, cos, sin = (torch.randn(2, 3, n, 64).to(dtype) for n in (4, 1, 1))
        got = norm.rotary_mul(x, cos, sin)
        rotated = torch.cat((-x[..., 32:], x[..., :32]), -1)
        if dtype is torch.float16:
            left, right = (x.double() * cos.double()).half(), (rotated.double() * sin.double()).half()
            assert torch.equal(got, (left.double() + right.double()).half())
        else:
            assert ulps(got, formulas.rotary(x, cos, sin)) < 0.51
    with pytest.raises(GeGraphError, match="mode"):
        norm.rotary_mul(x, cos, sin, mode="interleave")


@pytest.mark.parametrize("activate_left", [False, True])
@pytest.mark.parametrize("approximate", [0, 1])
def test_geglu_activates_one_half_and_rounds_the_product_once(activate_left: bool, approximate: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 64).bfloat16()
    halves = x.double().chunk(2, -1)
    gate, up = halves if activate_left else halves[::-1]
    gelu = formulas.gelu(gate, tanh_form=bool(approximate))
    y, activated = activation.geglu_v2(x, approximate=approximate, activate_left=activate_left)
    assert ulps(y, gelu * up) < 0.6
    assert ulps(activated, gelu) < 0.6


def test_cast_overflows_truncates_and_refuses_what_does_not_fit() -> None:
    assert elementwise.cast(torch.tensor([70000.0, -70000.0]), dst_type=1).tolist() == [math.inf, -math.inf]
    assert elementwise.cast(torch.tensor([2.9, -2.9]), dst_type=3).tolist() == [2, -2]
    assert elementwise.cast(torch.tensor([127.9, -128.9]), dst_type=2).tolist() == [127, -128]
    for value in (128.0, -129.0, math.nan, math.inf):
        with pytest.raises(GeGraphError, match="undefined"):
            elementwise.cast(torch.tensor([value]), dst_type=2)
    with pytest.raises(GeGraphError, match="dtype 99"):
        elementwise.cast(torch.zeros(1), dst_type=99)


def test_scalar_ops_round_after_the_product() -> None:
    x = torch.tensor([3.0]).bfloat16()
    assert elementwise.muls(x, value=55.5).item() == torch.tensor(166.5).bfloat16().item()
    assert elementwise.adds(x, value=0.001).item() == 3.0
    assert elementwise.muls(torch.tensor([3]), value=2.0).item() == 6


def test_binary_ops_do_not_promote() -> None:
    with pytest.raises(GeGraphError, match="one dtype"):
        OPS["Add"].kernel(torch.ones(2).half(), torch.ones(2))


def test_integer_division_floors_and_refuses_zero() -> None:
    a, b = torch.tensor([7, -7]), torch.tensor([2, 2])
    assert elementwise.floor_div(a, b).tolist() == [3, -4]
    assert elementwise.floor_mod(a, b).tolist() == [1, 1]
    with pytest.raises(GeGraphError, match="division by 0"):
        elementwise.floor_div(a, torch.tensor([1, 0]))


def test_sums_of_halves_accumulate_in_fp32() -> None:
    x = torch.full((1, 4096), 0.1).half()
    exact = x.double().sum().item()
    assert abs(reduction.reduce_sum(x, torch.tensor([1])).item() - exact) < 0.2
    assert reduction.reduce_mean(x, torch.tensor([-1]), keep_dims=True).shape == (1, 1)
    running = reduction.cumsum(x, torch.tensor(1))
    assert abs(running[0, -1].item() - exact) < 0.2


def test_ordering_takes_the_first_of_equals_and_refuses_nan() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    assert reduction.arg_max_v2(x, torch.tensor(-1)).tolist() == [1]
    values, indices = reduction.top_k_v2(x, torch.tensor(3))
    assert (values.tolist(), indices.tolist(), indices.dtype) == ([[3.0, 3.0, 1.0]], [[1, 2, 0]], torch.int32)
    _, order = reduction.sort(x, descending=True)
    assert order.tolist() == [[1, 2, 0, 3]]
    for op in (lambda y: reduction.arg_max_v2(y, torch.tensor(-1)), reduction.sort):
        with pytest.raises(GeGraphError, match="NaN"):
            op(torch.tensor([[math.nan, 1.0]]))
