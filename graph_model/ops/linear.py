"""Linear layers by oneDNN, for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_model.ops.registry import kernel_op


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@kernel_op("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake)
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by oneDNN, on the weight as it is: x [..., in], weight [out, in], bias [out]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def onednn_supports(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN kernels for matrices of `dtype`; without native instructions 16 bit has none."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32
