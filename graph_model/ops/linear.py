"""Linear layers whose sums stay in float32, and linear layers by kernels for CPUs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op, kernel_op

_TILE_BYTES = 8 << 20


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_as(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _fake(x, weight).to(dtype)


def _fake_scaled(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return _fake(x, weight)


def _fake_integers(q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _fake(q, weight).to(torch.int32)


@canonical_op("float32_linear(Tensor x, Tensor weight) -> Tensor")
def float32_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T as its sums are, in float32: x [..., in] and weight [out, in] of 16 bit -> float32 [..., out]."""
    return F.linear(x.float(), weight.float())


@kernel_op("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake)
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by oneDNN, on the weight as it is: x [..., in], weight [out, in], bias [out]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@kernel_op("skinny_linear(Tensor x, Tensor weight, Tensor? bias, ScalarType dtype) -> Tensor", _fake_as)
def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x @ weight.T + bias, summed in float32 and rounded once to `dtype`: x's own, or float32.

    x [..., in], weight [out, in] and bias [out] in bfloat16 or float16.
    This is the reference; graph_model.native has a kernel that reads the weight once for up to 16 rows of x.
    """
    result = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return result.to(dtype)


@kernel_op("tiled_linear(Tensor x, Tensor weight, Tensor? bias, ScalarType dtype) -> Tensor", _fake_as)
def tiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """skinny_linear for many rows of x, as float32 products of a few megabytes of the weight at a time."""
    rows = x.reshape(-1, x.shape[-1]).float()
    result = x.new_empty((rows.shape[0], weight.shape[0]), dtype=dtype)
    for tile in _tiles(weight):
        product = F.linear(rows, weight[tile].float(), None if bias is None else bias[tile].float())
        result[:, tile] = product
    return result.view(*x.shape[:-1], weight.shape[0])


@kernel_op("skinny_int8_weight_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor", _fake_scaled)
def skinny_int8_weight_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(x @ weight.T) * scale + bias in float32, rounded once to x's dtype.

    x [..., in] of any float dtype, weight int8 [out, in], scale float32 [out], bias [out] of x's dtype.
    This is the reference; graph_model.native has a kernel that reads the weight once for up to 16 rows of x.
    """
    result = F.linear(x.float(), weight.float()) * scale
    return (result if bias is None else result + bias.float()).to(x.dtype)


@kernel_op("tiled_int8_weight_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor", _fake_scaled)
def tiled_int8_weight_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """skinny_int8_weight_linear for many rows of x, as products of a few megabytes of the weight at a time.

    They are computed in x's dtype where this CPU has such products, and then rounded to it before they are scaled.
    """
    dtype = x.dtype if onednn_supports(x.dtype) else torch.float32
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    result = x.new_empty((rows.shape[0], weight.shape[0]))
    for tile in _tiles(weight):
        product = F.linear(rows, weight[tile].to(dtype)).float() * scale[tile]
        result[:, tile] = product if bias is None else product + bias[tile].float()
    return result.view(*x.shape[:-1], weight.shape[0])


@kernel_op(
    "native_int8_linear(Tensor q, Tensor weight, Tensor? int_bias, Tensor scale, Tensor? row_scale, Tensor? bias,"
    " ScalarType dtype) -> Tensor",
    lambda q, weight, int_bias, scale, row_scale, bias, dtype: _fake(q, weight).to(dtype),
)
def native_int8_linear(
    q: Tensor,
    weight: Tensor,
    int_bias: Tensor | None,
    scale: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """int8_linear, the same numbers. This is the reference; graph_model.native has the kernel."""
    return torch.ops.gemma.int8_linear(q, weight, int_bias, scale, row_scale, bias, dtype)


@kernel_op("native_int_linear(Tensor q, Tensor weight, Tensor? bias) -> Tensor", _fake_integers)
def native_int_linear(q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """int_linear, the same numbers. This is the reference; graph_model.native has the kernel."""
    return torch.ops.gemma.int_linear(q, weight, bias)


def onednn_supports(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN kernels for matrices of `dtype`; without native instructions 16 bit has none."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def _tiles(weight: Tensor) -> Iterator[slice]:
    """Rows of the weight that take a few megabytes in float32."""
    step = max(16, _TILE_BYTES // (4 * weight.shape[1]) // 16 * 16)
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))
