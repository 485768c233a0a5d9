"""Ops that GE has and torch_npu or torchair do not give: their torch schemas, meanings and fake kernels.

Importing this module defines the ops as ``torch.ops.ascend.*``, without torch_npu, so that passes can write them into
a graph anywhere. converters.py lowers them; on the device they run inside a lowered graph only; kernels.py gives them a
meaning on the CPU.

  gemma_rms_norm          RMS norm with 1 + weight, one rounding
  linear                  x @ weight.T with weight stored [out, in]: no Transpose at run time
  gemm                    x @ weight.T + total in float32, of 16-bit x and weight
  matmul_all_reduce       linear, summed over the ranks by the same kernel
  batch_matmul            a batched product with a factor stored transposed: no Transpose of gathered keys
  quant_matmul            int8 x @ int8 weight.T, scaled; weight stored [out, in], any number of rows
  dequantize              int32 * scale, rounded once
  weight_quant_matmul     x @ (int8 weight * scale).T with weight stored [out, in]
  incre_flash_attention   decode attention with the keys' lengths as a tensor: one graph for all lengths
  dynamic_quant_scatter_  rows quantized each with a scale of its own, and both written into caches, in one kernel
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("ascend", "FRAGMENT")
_SCHEMAS = (
    "gemma_rms_norm(Tensor x, Tensor weight, float epsilon=1e-06) -> Tensor",
    "linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    "gemm(Tensor x, Tensor weight, Tensor one, Tensor total) -> Tensor",
    "matmul_all_reduce(Tensor x, Tensor weight) -> Tensor",
    "batch_matmul(Tensor x1, Tensor x2, bool adj_x2=False) -> Tensor",
    "quant_matmul(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? pertoken_scale, ScalarType dtype)"
    " -> Tensor",
    "dequantize(Tensor x, Tensor scale, ScalarType dtype) -> Tensor",
    "weight_quant_matmul(Tensor x, Tensor weight, Tensor scale) -> Tensor",
    "incre_flash_attention(Tensor query, Tensor key, Tensor value, Tensor actual_seq_lengths, *, "
    "Tensor? atten_mask=None, Tensor? block_table=None, int num_heads, int num_key_value_heads, float scale, "
    'str input_layout="BSH", int block_size=0) -> Tensor',
    "dynamic_quant_scatter_(Tensor(a!) cache, Tensor(b!) scales, Tensor places, Tensor rows) -> ()",
    "dynamic_quant_scatter(Tensor cache, Tensor scales, Tensor places, Tensor rows) -> (Tensor, Tensor)",
)
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema)


@torch.library.register_fake("ascend::gemma_rms_norm")
def _gemma_rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / rms(x) * (1 + weight) over the last dimension; weight has x's dtype."""
    torch._check(weight.dtype == x.dtype, lambda: "gemma_rms_norm: weight must have x's dtype")
    torch._check(weight.shape == x.shape[-1:], lambda: "gemma_rms_norm: weight must be a vector of x's last size")
    return torch.empty_like(x)


@torch.library.register_fake("ascend::linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] @ weight [out, in] transposed, + bias [out]."""
    torch._check(x.dim() == 2 and weight.dim() == 2, lambda: "linear: x and weight must be matrices")
    torch._check(x.shape[1] == weight.shape[1], lambda: "linear: inner sizes differ")
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("ascend::gemm")
def _gemm(x: Tensor, weight: Tensor, one: Tensor, total: Tensor) -> Tensor:
    """x [rows, in] @ weight [out, in] transposed, + total [rows, out]; total and result are float32.

    one: [1] of x's dtype, by which the kernel says it multiplies product and total.
    """
    torch._check(one.dtype == x.dtype and one.shape == (1,), lambda: "gemm: one must be a number of x's dtype")
    torch._check(total.dtype == torch.float32, lambda: "gemm: total must be float32")
    torch._check(total.shape == (x.shape[0], weight.shape[0]), lambda: "gemm: total must have the result's shape")
    return _linear(x, weight).float()


@torch.library.register_fake("ascend::matmul_all_reduce")
def _matmul_all_reduce(x: Tensor, weight: Tensor) -> Tensor:
    """The sum of the ranks' x [rows, in] @ weight [out, in] transposed, over all ranks."""
    return _linear(x, weight)


@torch.library.register_fake("ascend::batch_matmul")
def _batch_matmul(x1: Tensor, x2: Tensor, adj_x2: bool = False) -> Tensor:
    """x1 [..., m, k] @ x2 [..., k, n], or x2 stored [..., n, k] with adj_x2."""
    return torch.matmul(x1, x2.mT if adj_x2 else x2)


@torch.library.register_fake("ascend::quant_matmul")
def _quant_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    pertoken_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(x [rows, in] @ weight [out, in] transposed + int32 bias [out]) * scale [out] [* pertoken_scale [rows]].

    dtype: float16, bfloat16, or int32, which is not scaled; scale is 1 then.
    """
    torch._check(x.dtype == weight.dtype == torch.int8, lambda: "quant_matmul: x and weight must be int8")
    torch._check(x.shape[1] == weight.shape[1], lambda: "quant_matmul: inner sizes differ")
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


@torch.library.register_fake("ascend::dequantize")
def _dequantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x int32 [rows, out] * scale float32 [out], rounded once to `dtype`, float16 or bfloat16."""
    torch._check(x.dtype == torch.int32 and x.dim() == 2, lambda: "dequantize: x must be a matrix of int32")
    torch._check(scale.dtype == torch.float32, lambda: "dequantize: scale must be float32")
    return torch.empty_like(x, dtype=dtype)


@torch.library.register_fake("ascend::weight_quant_matmul")
def _weight_quant_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [rows, in] @ (weight [out, in] * scale [out, 1]) transposed; scale has x's dtype."""
    torch._check(weight.dtype == torch.int8, lambda: "weight_quant_matmul: weight must be int8")
    torch._check(scale.dtype == x.dtype, lambda: "weight_quant_matmul: scale must have x's dtype")
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("ascend::incre_flash_attention")
def _incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    actual_seq_lengths: Tensor,
    *,
    atten_mask: Tensor | None = None,
    block_table: Tensor | None = None,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    input_layout: str = "BSH",
    block_size: int = 0,
) -> Tensor:
    """One query token per row; layouts and paging as in the GE op IncreFlashAttention."""
    torch._check(actual_seq_lengths.dtype == torch.int64, lambda: "incre_flash_attention: lengths must be int64")
    return torch.empty_like(query)


@torch.library.register_fake("ascend::dynamic_quant_scatter_")
def _dynamic_quant_scatter_(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> None:
    """Row i of `rows` [n, 1, size] becomes int8 with the scale max|row| / 127; both go to place[i].

    cache int8 [places, 1, size], scales float32 [places, 1, 1]; places int64 [n, 2]: the row of both, and 0.
    """
    torch._check(cache.dtype == torch.int8, lambda: "dynamic_quant_scatter: the cache must be int8")
    torch._check(scales.dtype == torch.float32, lambda: "dynamic_quant_scatter: the scales must be float32")
    torch._check(cache.shape[1:] == rows.shape[1:], lambda: "dynamic_quant_scatter: rows must be like the cache's")
    torch._check(scales.shape == (cache.shape[0], 1, 1), lambda: "dynamic_quant_scatter: a scale for each row")
    torch._check(places.shape == (rows.shape[0], 2), lambda: "dynamic_quant_scatter: a place for each row")


@torch.library.register_fake("ascend::dynamic_quant_scatter")
def _dynamic_quant_scatter(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same, into copies."""
    return torch.empty_like(cache), torch.empty_like(scales)


@torch.library.impl(_LIBRARY, "dynamic_quant_scatter_", "Functionalize")
def _functional_dynamic_quant_scatter(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> None:
    """How torch.func.functionalize writes the op that writes in place as the one that does not."""
    private: Any = torch  # what functionalisation is made of is not typed
    written = (cache, scales)
    plain = []
    for tensor in (*written, places, rows):
        private._sync(tensor)
        plain.append(private._from_functional_tensor(tensor))
    functionalize = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
    with torch._C._ExcludeDispatchKeyGuard(functionalize):
        results = torch.ops.ascend.dynamic_quant_scatter(*plain)
    for tensor, result in zip(written, results, strict=True):
        private._functionalize_replace(tensor, result)
        private._functionalize_commit_update(tensor)
        private._sync(tensor)
