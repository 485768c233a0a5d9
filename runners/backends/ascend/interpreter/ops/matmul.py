"""Matrix products in floating point.

The cube unit multiplies 16-bit inputs exactly, accumulates in fp32, adds the bias in fp32 and rounds once to the
output's dtype. fp32 inputs are multiplied as fp32 (allow_hf32 off, torch_npu's default for matmul).
GemmV2 alone gives the sums of 16-bit inputs in fp32. Source: prototypes in matrix_calculation_ops.h; ops-nn matmul.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.interpreter.ops.checks import (
    FLOATS,
    HALVES,
    require,
    require_dtype,
    require_same_dtype,
)
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op


@ge_op("MatMul")
def mat_mul(
    x1: Tensor, x2: Tensor, bias: Tensor | None = None, *, transpose_x1: bool = False, transpose_x2: bool = False
) -> Tensor:
    """x1 [m, k] @ x2 [k, n] + bias [n]; a transposed input is stored [k, m] or [n, k]. Both are 2-D."""
    require(x1.dim() == 2 and x2.dim() == 2, f"MatMul of ranks {x1.dim()} and {x2.dim()}; it takes matrices")
    return _product(x1.t() if transpose_x1 else x1, x2.t() if transpose_x2 else x2, bias)


@ge_op("MatMulV2")
def mat_mul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    """Like MatMul."""
    require(offset_w is None and offset_x == 0, "MatMulV2 with an offset")
    return mat_mul(x1, x2, bias, transpose_x1=transpose_x1, transpose_x2=transpose_x2)


@ge_op("GemmV2", by_reference={0: "c"})
def gemm_v2(
    a: Tensor,
    b: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Tensor:
    """Adds a [m, k] @ b [k, n] to c [m, n] in place, in fp32: a and b of 16 bit; a transposed one is stored swapped.

    alpha and beta, of a's dtype, are meant to scale product and c; the kernel adds, whatever they are, so they must be
    1. Source: ops-nn matmul/gemm_v2, its prototype, shape and dtype inference, and README.
    """
    require(a.dim() == 2 and b.dim() == 2, f"GemmV2 of ranks {a.dim()} and {b.dim()}; it takes matrices")
    require_same_dtype(a=a, b=b, alpha=alpha, beta=beta)
    require_dtype("a", a, *HALVES)
    require_dtype("c", c, torch.float32)
    require(bool((alpha == 1).all() and (beta == 1).all()), "GemmV2 with an alpha or a beta other than 1")
    left, right = a.t() if transpose_a else a, b.t() if transpose_b else b
    require(left.shape[1] == right.shape[0], f"inner sizes {left.shape[1]} and {right.shape[0]} differ")
    require(c.shape == (left.shape[0], right.shape[1]), f"c is {list(c.shape)}; it must have the result's shape")
    return c.add_(left.float() @ right.float())


@ge_op("BatchMatMul")
def batch_mat_mul(x1: Tensor, x2: Tensor, *, adj_x1: bool = False, adj_x2: bool = False) -> Tensor:
    """x1 [..., m, k] @ x2 [..., k, n]; leading dimensions broadcast; adj: the last two are stored swapped."""
    require(x1.dim() >= 2 and x2.dim() >= 2, f"BatchMatMul of ranks {x1.dim()} and {x2.dim()}")
    return _product(x1.mT if adj_x1 else x1, x2.mT if adj_x2 else x2, None)


@ge_op("BatchMatMulV2")
def batch_mat_mul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    adj_x1: bool = False,
    adj_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    """Like BatchMatMul, with a bias along the last dimension."""
    require(offset_w is None and offset_x == 0, "BatchMatMulV2 with an offset")
    return _product(x1.mT if adj_x1 else x1, x2.mT if adj_x2 else x2, bias)


def _product(x1: Tensor, x2: Tensor, bias: Tensor | None) -> Tensor:
    require_same_dtype(x1=x1, x2=x2)
    require_dtype("x1", x1, *FLOATS)
    require(x1.shape[-1] == x2.shape[-2], f"inner sizes {x1.shape[-1]} and {x2.shape[-2]} differ")
    if bias is None and x1.dtype is torch.float32:
        return x1 @ x2
    result = x1.float() @ x2.float()
    if bias is not None:
        require_dtype("bias", bias, x1.dtype, torch.float32)
        result = result + bias.float()
    return result.to(x1.dtype)
