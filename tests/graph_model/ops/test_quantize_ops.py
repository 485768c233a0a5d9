"""Quantizing ops: integers are exact, ties go to even, values saturate; folded ops give the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graph_gemma.graph_model import ops

GENERATOR = torch.Generator().manual_seed(0)
HALVES = (torch.float16, torch.bfloat16, torch.float32)


def random_int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=GENERATOR)


def test_quantize_divides_rounds_ties_to_even_and_saturates() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -3.0, 300.0, -300.0])
    one, zero = torch.ones(1), torch.zeros(1)
    assert ops.quantize(x, one, zero).tolist() == [0, 2, 2, 0, -3, 127, -128]
    # The offset is added before rounding, as the chip does: ties move with its parity.
    assert ops.quantize(x, one, one).tolist() == [2, 2, 4, 0, -2, 127, -128]
    assert ops.quantize(x, 2 * one, zero).tolist() == [0, 1, 1, 0, -2, 127, -128]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_each_row_gets_the_scale_of_its_largest_value(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 50, generator=GENERATOR).to(dtype)
    x[0, 1] = 0
    q, scale = ops.quantize_rows(x)
    wide = x.double().numpy()
    expected = np.abs(wide).max(-1) / 127
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-6)
    steps = np.divide(wide, expected[..., None], out=np.zeros_like(wide), where=expected[..., None] > 0)
    assert np.abs(q.numpy() - steps).max() <= 0.5001
    assert (q.abs().amax(-1) == 127).sum() == 5
    assert not q[0, 1].any()


@pytest.mark.parametrize("size", [48, 1024, 2500])
def test_integer_products_are_exact(size: int) -> None:
    q, weight = random_int8(3, 2, size), random_int8(7, size)
    q[0], weight[0] = -128, -128  # the largest sums
    bias = torch.randint(-(10**6), 10**6, (7,), dtype=torch.int32, generator=GENERATOR)
    expected = q.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T
    assert np.array_equal(ops.int_linear(q, weight, None).numpy(), expected)
    found = ops.int_linear(q, weight, bias)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), expected + bias.numpy())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dequantize_scales_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    total = torch.randint(-(10**6), 10**6, (2, 3, 7), dtype=torch.int32, generator=GENERATOR)
    scale, rows, bias = (torch.rand(shape, generator=GENERATOR) for shape in ((7,), (2, 3), (7,)))
    wide = total.double() * scale.double()
    torch.testing.assert_close(ops.dequantize(total, scale, None, None, dtype), wide.to(dtype), rtol=0.008, atol=0)
    exact = wide * rows[..., None].double() + bias.double()
    found = ops.dequantize(total, scale, rows, bias, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-2)
    assert torch.equal(ops.dequantize(total, scale, rows, bias, dtype), found.to(dtype))


def test_folded_ops_give_the_same_numbers() -> None:
    x, residual = (torch.randn(2, 3, 48, generator=GENERATOR).bfloat16() for _ in range(2))
    factor, scale, offset = 1 + torch.rand(48, generator=GENERATOR), torch.tensor([0.03]), torch.tensor([-7.0])
    q = ops.quantize(ops.rms_norm(x, factor, 1e-6), scale, offset)
    assert torch.equal(ops.rms_norm_quantize(x, factor, scale, offset, 1e-6), q)
    normed, total = ops.add_rms_norm(x, residual, factor, 1e-6)
    found = ops.add_rms_norm_quantize(x, residual, factor, scale, offset, 1e-6)
    assert torch.equal(found[0], ops.quantize(normed, scale, offset))
    assert torch.equal(found[1], total)
    weight, deq = random_int8(7, 48), torch.rand(7, generator=GENERATOR)
    expected = ops.dequantize(ops.int_linear(q, weight, None), deq, None, None, torch.bfloat16)
    assert torch.equal(ops.int8_linear(q, weight, None, deq, None, None, torch.bfloat16), expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_int8_weight_is_scaled_per_output_channel(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 48, generator=GENERATOR).to(dtype)
    weight, scale = random_int8(7, 48), torch.rand(7, generator=GENERATOR) / 100
    bias = torch.randn(7, generator=GENERATOR).to(dtype)
    exact = x.double() @ (weight.double() * scale[:, None].double()).t() + bias.double()
    found = ops.int8_weight_linear(x, weight, scale, bias)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()
