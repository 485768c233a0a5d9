"""Floating-point matrix products with weights as they are stored, [out, in]: MatMulV2, BatchMatMul and GemmV2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ascend.ops.op import AscendOp, ge, insert_node
from graph_gemma.graph_model.ascend.work import product


def fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] @ weight [out, in] transposed, + bias [out]."""
    torch._check(x.dim() == 2 and weight.dim() == 2, lambda: "linear: x and weight must be matrices")
    torch._check(x.shape[1] == weight.shape[1], lambda: "linear: inner sizes differ")
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_gemm(x: Tensor, weight: Tensor, one: Tensor, total: Tensor) -> Tensor:
    """x [rows, in] @ weight [out, in] transposed, + total [rows, out]; total and result are float32.

    one: [1] of x's dtype, by which the kernel says it multiplies product and total.
    """
    torch._check(one.dtype == x.dtype and one.shape == (1,), lambda: "gemm: one must be a number of x's dtype")
    torch._check(total.dtype == torch.float32, lambda: "gemm: total must be float32")
    torch._check(total.shape == (x.shape[0], weight.shape[0]), lambda: "gemm: total must have the result's shape")
    return fake_linear(x, weight).float()


def _gemm(x: Tensor, weight: Tensor, one: Tensor, total: Tensor) -> Tensor:
    assert one.item() == 1
    return F.linear(x.float(), weight.float()) + total


def _convert_gemm(x: Any, weight: Any, one: Any, total: Any) -> Any:
    """Source of the prototype: ops-nn matmul/gemm_v2/op_graph/gemm_v2_proto.h."""
    return insert_node(
        "GemmV2",
        {"a": x, "b": weight, "alpha": one, "beta": one, "c": ge().TensorMove(total)},
        ["c"],
        {"transpose_b": True},
        defaults={"transpose_a": False, "transpose_b": False},
    )


def _batch_matmul(x1: Tensor, x2: Tensor, adj_x2: bool = False) -> Tensor:
    """x1 [..., m, k] @ x2 [..., k, n], or x2 stored [..., n, k] with adj_x2: no Transpose of gathered keys."""
    return torch.matmul(x1, x2.mT if adj_x2 else x2)


OPS = (
    AscendOp(
        "ascend::linear",
        "MatMulV2",
        schema="(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
        fake=fake_linear,
        convert=lambda x, weight, bias=None: ge().MatMulV2(x, weight, bias, None, transpose_x2=True),
        cpu=lambda x, weight, bias=None: F.linear(x, weight, bias),
        work=product("x1", "x2"),
    ),
    AscendOp(
        "ascend::gemm",
        "GemmV2",
        schema="(Tensor x, Tensor weight, Tensor one, Tensor total) -> Tensor",
        fake=_fake_gemm,
        convert=_convert_gemm,
        cpu=_gemm,
        work=product("a", "b"),
    ),
    AscendOp(
        "ascend::batch_matmul",
        "BatchMatMul",
        schema="(Tensor x1, Tensor x2, bool adj_x2=False) -> Tensor",
        fake=_batch_matmul,
        convert=lambda x1, x2, adj_x2=False: ge().BatchMatMul(x1, x2, adj_x1=False, adj_x2=adj_x2),
        cpu=_batch_matmul,
        work=product("x1", "x2"),
    ),
)
