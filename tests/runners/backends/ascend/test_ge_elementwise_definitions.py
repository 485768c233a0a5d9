"""Elementwise ops, each alone, against its definition in float64 (numpy), at the ends of a dtype's range too."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.ge_graphs import assert_rounded, covers, edge_values, run_op

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((), (1,), (0,), (3, 0, 2), (1, 7, 1), (5, 33))
erf = np.vectorize(math.erf, otypes=[float])


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # 0.5 (1 + tanh z) = 1 / (1 + e^-2z)


# The definition, and the units in the last place that fp32 arithmetic may be off.
UNARY: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "Abs": (lambda x: np.where(np.signbit(x), -x, x), 0.0),
    "Exp": (lambda x: np.exp2(x * math.log2(math.e)), 4.0),
    "Log": (lambda x: np.log2(x) * math.log(2), 4.0),
    "Tanh": (lambda x: np.sign(x) * -np.expm1(-2 * np.abs(x)) / (1 + np.exp(-2 * np.abs(x))), 4.0),
    "Erf": (erf, 4.0),
    "Sigmoid": (lambda x: 0.5 * (1 + np.tanh(x / 2)), 4.0),
    "Square": (lambda x: x**2, 0.51),
    "Sqrt": (lambda x: np.where(x < 0, np.nan, np.exp(0.5 * np.log(np.abs(x)))), 1.0),
    "Rsqrt": (lambda x: 1 / np.sqrt(x), 2.0),
    "Reciprocal": (lambda x: x**-1.0, 1.0),
    "Floor": (lambda x: np.where(x == np.trunc(x), x, np.trunc(x) - (x < 0)), 0.0),
    "Round": (lambda x: np.where(np.abs(x) < 2**52, (x + 1.5 * 2**52) - 1.5 * 2**52, x), 0.0),
}


def wide(x: torch.Tensor) -> np.ndarray:
    return x.double().numpy()


@covers(*UNARY)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", UNARY)
@np.errstate(all="ignore")
def test_functions_of_one_number(op: str, dtype: torch.dtype) -> None:
    definition, ulps = UNARY[op]
    generator = torch.Generator().manual_seed(1)
    for shape in SHAPES:
        x = (torch.randn(shape, generator=generator) * 4).to(dtype)
        for values in (x, x.abs() + 0.01):
            (found,) = run_op(op, {"x": values})
            assert found.dtype == dtype
            assert_rounded(found, definition(wide(values)), ulps if dtype is torch.float32 else min(ulps, 0.51))
    x = edge_values(dtype)
    (found,) = run_op(op, {"x": x})
    if op in ("Exp", "Sigmoid"):  # of float32's subnormal results a library may keep fewer digits, or none
        x, found = x[found.double().abs() >= 2e-38], found[found.double().abs() >= 2e-38]
    assert_rounded(found, definition(wide(x)), ulps if dtype is torch.float32 else min(ulps, 0.51))


@covers("Gelu", "GeluV2")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("op", "attrs", "definition"),
    [
        ("Gelu", {}, gelu_tanh),
        ("GeluV2", {"approximate": "tanh"}, gelu_tanh),
        ("GeluV2", {"approximate": "none"}, gelu_erf),
        ("GeluV2", {}, gelu_erf),
    ],
)
def test_gelu_in_both_forms(op: str, attrs: dict[str, str], definition: Callable, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in SHAPES:
        x = (torch.randn(shape, generator=generator).abs() * 2).to(dtype)
        assert_rounded(run_op(op, {"x": x}, **attrs)[0], definition(wide(x)), 4.0 if dtype is torch.float32 else 0.51)
    # Below 0 the result is a difference of near numbers: its error is that of fp32 at the size of x.
    x = -torch.linspace(0, 9, 301).to(dtype)
    found = run_op(op, {"x": x}, **attrs)[0].double().numpy()
    np.testing.assert_allclose(found, definition(wide(x)), rtol=torch.finfo(dtype).eps, atol=1e-6)
    x = torch.tensor([math.inf, torch.finfo(dtype).max, 0.0, math.nan]).to(dtype)
    assert_rounded(run_op(op, {"x": x}, **attrs)[0], np.array([math.inf, torch.finfo(dtype).max, 0.0, math.nan]))


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Exp", {"base": 2.0}),
        ("Exp", {"scale": 2.0}),
        ("Exp", {"shift": 1.0}),
        ("Log", {"base": 10.0}),
        ("Round", {"decimals": 2}),
        ("GeluV2", {"approximate": "sigmoid"}),
    ],
)
def test_forms_that_are_not_modelled_are_refused(op: str, attrs: dict[str, object]) -> None:
    with pytest.raises(GeGraphError):
        run_op(op, {"x": torch.ones(2)}, **attrs)


@pytest.mark.parametrize("op", ["Sqrt", "Rsqrt", "Reciprocal", "GeluV2"])
def test_integers_are_refused_where_the_op_takes_floats(op: str) -> None:
    with pytest.raises(GeGraphError, match="the op takes"):
        run_op(op, {"x": torch.ones(2, dtype=torch.int32)})


def test_integers_keep_their_dtype_where_the_op_takes_them() -> None:
    x = torch.tensor([[-3, 0, 2**31 - 1]], dtype=torch.int32)
    assert run_op("Abs", {"x": x})[0].tolist() == [[3, 0, 2**31 - 1]]
    assert run_op("Square", {"x": x[:, :2]})[0].tolist() == [[9, 0]]
    assert run_op("Abs", {"x": x})[0].dtype is torch.int32


def pairs(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Broadcasts, scalars, empty tensors, and every edge value against every other."""
    generator = torch.Generator().manual_seed(2)
    shapes = (((3, 1, 5), (7, 1)), ((), (4,)), ((0, 3), (1, 3)), ((1,), (1,)), ((2, 17), (2, 17)))
    found = [tuple((torch.randn(s, generator=generator) * 3).to(dtype) for s in pair) for pair in shapes]
    edges = edge_values(dtype)
    return [*found, (edges[:, None], edges)]  # type: ignore[list-item]


ARITHMETIC: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": lambda a, b: a - -b,
    "Sub": lambda a, b: a + -b,
    "Mul": lambda a, b: np.multiply(a, b),
    "RealDiv": lambda a, b: np.divide(a, b),
    "Maximum": lambda a, b: np.where(np.isnan(a) | (a >= b), a, b),
    "Minimum": lambda a, b: np.where(np.isnan(a) | (a <= b), a, b),
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "Equal": lambda a, b: a == b,
    "Less": lambda a, b: a < b,
    "LessEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterEqual": lambda a, b: a >= b,
}


@covers(*ARITHMETIC, *COMPARISONS)
@pytest.mark.parametrize("dtype", FLOATS)
@np.errstate(all="ignore")
def test_arithmetic_and_comparisons_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    for a, b in pairs(dtype):
        for op, definition in ARITHMETIC.items():
            assert_rounded(run_op(op, {"x1": a, "x2": b})[0], definition(*np.broadcast_arrays(wide(a), wide(b))))
        both = [x.flatten().tolist() for x in np.broadcast_arrays(wide(a), wide(b))]
        for op, holds in COMPARISONS.items():
            (found,) = run_op(op, {"x1": a, "x2": b})
            assert found.flatten().tolist() == [holds(x, y) for x, y in zip(*both, strict=True)]


@covers("AddV2", "Div", "NotEqual")
@pytest.mark.parametrize("dtype", FLOATS)
@np.errstate(all="ignore")
def test_sums_quotients_and_inequality_by_their_other_names(dtype: torch.dtype) -> None:
    for a, b in pairs(dtype):
        assert_rounded(run_op("AddV2", {"x1": a, "x2": b})[0], wide(a) + wide(b))
        assert_rounded(run_op("Div", {"x1": a, "x2": b})[0], wide(a) / wide(b))
        (differ,) = run_op("NotEqual", {"x1": a, "x2": b})
        assert differ.dtype is torch.bool
        assert differ.tolist() == (~((wide(a) <= wide(b)) & (wide(a) >= wide(b)))).tolist()
    with pytest.raises(GeGraphError, match="the op takes"):
        run_op("Div", {"x1": torch.tensor([4]), "x2": torch.tensor([2])})


@covers("Pow")
@pytest.mark.parametrize("dtype", FLOATS)
@np.errstate(all="ignore")
def test_powers(dtype: torch.dtype) -> None:
    for a, b in pairs(dtype)[:-1]:
        a = a.abs() + 0.1
        expected = np.exp2(wide(b) * np.log2(wide(a)))
        assert_rounded(run_op("Pow", {"x1": a, "x2": b})[0], expected, 8.0 if dtype is torch.float32 else 0.51)
    base = torch.tensor([0.0, 0.0, -2.0, -2.0, -8.0, math.inf, 0.5, 300.0, 1.0]).to(dtype)
    exponent = torch.tensor([0.0, -1.0, 3.0, -1.0, 0.5, -1.0, math.inf, 400.0, math.nan]).to(dtype)
    expected = np.array([1, math.inf, -8, -0.5, math.nan, 0, 0, math.inf, 1])
    assert_rounded(run_op("Pow", {"x1": base, "x2": exponent})[0], expected, 1.0 if dtype is torch.float32 else 0.51)
    whole = run_op("Pow", {"x1": torch.tensor([[3], [-2]]), "x2": torch.tensor([0, 5])})[0]
    assert whole.tolist() == [[1, 243], [1, -32]]


@covers("Axpy")
@pytest.mark.parametrize("dtype", FLOATS)
def test_axpy_rounds_once_and_takes_no_fraction_of_an_integer(dtype: torch.dtype) -> None:
    for a, b in pairs(dtype)[:-1]:
        found = run_op("Axpy", {"x1": a, "x2": b}, alpha=-2.5)[0]
        if dtype is torch.float32:
            torch.testing.assert_close(found.double(), a.double() - 2.5 * b.double(), rtol=1e-6, atol=1e-6)
        else:
            assert_rounded(found, wide(a) - 2.5 * wide(b))
    assert run_op("Axpy", {"x1": torch.tensor([60000.0]).half(), "x2": torch.tensor([6000.0]).half()},
                  alpha=1.0)[0].item() == math.inf  # fmt: skip
    a, b = torch.tensor([10, -3]), torch.tensor([4, 2**40])
    assert run_op("Axpy", {"x1": a, "x2": b}, alpha=-1.0)[0].tolist() == [6, -3 - 2**40]
    with pytest.raises(GeGraphError, match=r"alpha|1\.5"):
        run_op("Axpy", {"x1": a, "x2": b}, alpha=1.5)


@covers("FloorDiv", "FloorMod")
def test_floored_quotients_and_remainders() -> None:
    a = torch.tensor([[7, -7, 0, 2**40 + 1, -(2**40) - 1]])
    b = torch.tensor([[2], [-2], [3], [2**33], [1]])
    expected = [[x // y for x in a[0].tolist()] for y in b[:, 0].tolist()]  # Python's integers floor
    assert run_op("FloorDiv", {"x1": a, "x2": b})[0].tolist() == expected
    rest = [[x - q * y for x, q in zip(a[0].tolist(), row, strict=True)] for row, y in zip(expected, b[:, 0].tolist(),
                                                                                         strict=True)]  # fmt: skip
    assert run_op("FloorMod", {"x1": a, "x2": b})[0].tolist() == rest
    for dtype in FLOATS:
        x, y = torch.tensor([7.5, -7.5, 7.5, 0.0]).to(dtype), torch.tensor([2.0, 2.0, -2.0, 3.0]).to(dtype)
        assert run_op("FloorDiv", {"x1": x, "x2": y})[0].tolist() == [3.0, -4.0, -4.0, 0.0]
        assert run_op("FloorMod", {"x1": x, "x2": y})[0].tolist() == [1.5, 0.5, -0.5, 0.0]
    empty = torch.zeros(0, 3, dtype=torch.int32)
    assert run_op("FloorMod", {"x1": empty, "x2": empty})[0].shape == (0, 3)
