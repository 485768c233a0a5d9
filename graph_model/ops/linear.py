"""Linear layers by kernels for CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_model.ops.registry import kernel_op

_TILE_BYTES = 8 << 20


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@kernel_op("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake)
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by oneDNN, on the weight as it is: x [..., in], weight [out, in], bias [out]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@kernel_op("few_rows_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake)
def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias in bfloat16 or float16, summed in float32: x [..., in], weight [out, in], bias [out].

    This is the reference; graph_model.native has a kernel that reads the weight once for up to 16 rows of x.
    """
    result = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return result.to(x.dtype)


@kernel_op("tiled_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake)
def tiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias in bfloat16 or float16, as float32 products of a few megabytes of the weight at a time.

    For many rows of x, on CPUs without 16-bit products: x [..., in], weight [out, in], bias [out].
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    result = x.new_empty((rows.shape[0], weight.shape[0]))
    step = max(16, _TILE_BYTES // (4 * weight.shape[1]) // 16 * 16)
    for start in range(0, weight.shape[0], step):
        tile = slice(start, start + step)
        product = F.linear(rows, weight[tile].float(), None if bias is None else bias[tile].float())
        result[:, tile] = product
    return result.view(*x.shape[:-1], weight.shape[0])


def onednn_supports(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN kernels for matrices of `dtype`; without native instructions 16 bit has none."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32
