"""Norms, rotary embedding and the gated activation against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.ops.registry import is_canonical

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One rounding of the result, or a few in float32.
RELATIVE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_norm64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm_rounds_its_formula_once(dtype: torch.dtype, scale: float, eps: float) -> None:
    x, weight = (normal(2, 5, 48) * scale).to(dtype), 1 + normal(48, seed=1)
    found = ops.rms_norm(x, weight, eps)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), rms_norm64(x, weight, eps), rtol=1.01 * RELATIVE[dtype], atol=1e-7)


def test_rms_norm_squares_in_float32() -> None:
    """300 squared is beyond float16."""
    found = ops.rms_norm(torch.full((1, 4), 300.0, dtype=torch.float16), torch.ones(4), 1e-6)
    torch.testing.assert_close(found, torch.ones(1, 4, dtype=torch.float16))


def test_rms_norm_keeps_the_weights_digits() -> None:
    """1 + 2^-10 is no bfloat16; it changes how some results round."""
    weight = torch.tensor([1 + 2**-10, 1.0])
    x = normal(500, 2, dtype=torch.bfloat16)
    assert not torch.equal(ops.rms_norm(x, weight, 1e-6)[:, 0], ops.rms_norm(x, torch.ones(2), 1e-6)[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_normalizes_the_rounded_sum_and_returns_it(dtype: torch.dtype) -> None:
    x, residual = (normal(3, 48, dtype=dtype, seed=seed) for seed in (1, 2))
    weight = 1 + normal(48, seed=3)

    normed, total = ops.add_rms_norm(x, residual, weight, 1e-6)

    assert normed.dtype == total.dtype == dtype
    assert torch.equal(total, (x.double() + residual.double()).to(dtype))
    torch.testing.assert_close(normed.double(), rms_norm64(total, weight, 1e-6), rtol=1.01 * RELATIVE[dtype], atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 4])
def test_rotary_turns_pairs_half_a_head_apart(dtype: torch.dtype, heads: int) -> None:
    x = normal(2, 3, heads, 8, dtype=dtype)
    angles = normal(2, 3, 1, 4, seed=1).double() * 3
    cos, sin = (torch.cat((table, table), -1).to(dtype) for table in (angles.cos(), angles.sin()))

    found = ops.rotary(x, cos, sin)

    expected = torch.empty(x.shape, dtype=torch.float64)
    for i in range(4):
        a, b = x[..., i].double(), x[..., i + 4].double()
        c, s = cos[..., i].double(), sin[..., i].double()
        expected[..., i], expected[..., i + 4] = a * c - b * s, b * c + a * s
    assert found.dtype == dtype
    # Two products and their sum are rounded each.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * RELATIVE[dtype] * x.abs().max().item())


def test_rotary_keeps_lengths() -> None:
    x, angles = normal(2, 3, 4, 8), normal(2, 3, 1, 4, seed=1)
    tables = (torch.cat((table, table), -1) for table in (angles.cos(), angles.sin()))
    torch.testing.assert_close(ops.rotary(x, *tables).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_and_mul_is_the_tanh_form(dtype: torch.dtype) -> None:
    gate, up = (normal(4, 96, dtype=dtype, seed=seed) * 2 for seed in (1, 2))

    found = ops.gelu_and_mul(gate, up)

    g = gate.double()
    gelu = 0.5 * g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), gelu * up.double(), rtol=2.1 * RELATIVE[dtype], atol=1e-6)
    if dtype == torch.float32:
        erf = 0.5 * g * (1 + torch.erf(g / math.sqrt(2))) * up.double()
        assert (found.double() - erf).abs().max() > 1e-4  # the other form would be seen


CALLS = {
    "rms_norm": (ops.rms_norm, (normal(2, 3, 8), normal(8), 1e-6)),
    "add_rms_norm": (ops.add_rms_norm, (normal(2, 8), normal(2, 8), normal(8), 1e-6)),
    "rotary": (ops.rotary, (normal(2, 3, 4, 8), normal(2, 3, 1, 8), normal(2, 3, 1, 8))),
    "gelu_and_mul": (ops.gelu_and_mul, (normal(2, 8), normal(2, 8))),
}


@pytest.mark.parametrize(("op", "arguments"), CALLS.values(), ids=CALLS)
def test_schema_and_fake_kernel_are_as_declared(op: torch._ops.OpOverload, arguments: tuple) -> None:
    torch.library.opcheck(op, arguments)


def test_every_op_of_the_package_is_canonical_and_documented() -> None:
    overloads = [op for op in vars(ops).values() if isinstance(op, torch._ops.OpOverload)]
    assert len(overloads) >= 9
    assert all(is_canonical(op) and op.namespace == ops.NAMESPACE for op in overloads)
    assert all(op.__doc__ for op in overloads)
    assert not is_canonical(torch.ops.aten.add.Tensor)
    assert not is_canonical(torch.add)
