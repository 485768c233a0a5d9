"""Register GE ops that torch computes element by element, from tables of op types and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import FLOATS, require_dtype, require_same_dtype
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

Unary = Callable[[Tensor], Tensor]
Binary = Callable[[Tensor, Tensor], Tensor]


def rounded_once(function: Unary, x: Tensor) -> Tensor:
    """A float function in fp32, rounded to x's dtype: torch's own are not all computed in fp32."""
    require_dtype("x", x, *FLOATS)
    return function(x.float()).to(x.dtype)


def register_rounded_once(functions: Mapping[str, Unary]) -> None:
    """Ops of one floating-point input x, computed in fp32 and rounded once."""
    for op_type, function in functions.items():
        ge_op(op_type)(_rounded_once(function))


def register_unary(functions: Mapping[str, Unary], *dtypes: torch.dtype) -> None:
    """Ops of one input x. dtypes: those that they take; none: any."""
    for op_type, function in functions.items():
        ge_op(op_type)(_unary(function, dtypes))


def register_binary(functions: Mapping[str, Binary], *dtypes: torch.dtype) -> None:
    """Ops of inputs x1 and x2 of one dtype, which broadcast. dtypes: those that they take; none: any."""
    for op_type, function in functions.items():
        ge_op(op_type)(_binary(function, dtypes))


def _rounded_once(function: Unary) -> Unary:
    def kernel(x: Tensor) -> Tensor:
        return rounded_once(function, x)

    return kernel


def _unary(function: Unary, dtypes: tuple[torch.dtype, ...]) -> Unary:
    def kernel(x: Tensor) -> Tensor:
        if dtypes:
            require_dtype("x", x, *dtypes)
        return function(x)

    return kernel


def _binary(function: Binary, dtypes: tuple[torch.dtype, ...]) -> Binary:
    def kernel(x1: Tensor, x2: Tensor) -> Tensor:
        require_same_dtype(x1=x1, x2=x2)
        if dtypes:
            require_dtype("x1", x1, *dtypes)
        return function(x1, x2)

    return kernel
