"""Products of quantized weights: QuantBatchMatmulV3, WeightQuantBatchMatmulV2 and DequantBias."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.ops.op import AscendOp, ge, ge_dtype, shape_of
from graph_gemma.graph_model.ascend.work import per_element, product
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.quantization.int8 import decode_scale

MAX_SIZE = 65535  # of the last dimension of x and weight, on every chip


def sums_integers(chip: Chip) -> bool:
    """Whether a product's integers can be summed over the ranks before they are scaled."""
    return chip.limits("QuantBatchMatmulV3").int32_result and chip.has("DequantBias")


def _fake_quant_matmul(
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


def _quant_matmul(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, pertoken_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    total = (x.double() @ weight.double().t()).to(torch.int32)  # exact
    if dtype == torch.int32:
        return total if bias is None else total + bias
    wide = decode_scale(scale) if scale.dtype == torch.int64 else scale.float()
    result = (total if bias is None else total + bias).float() * wide
    return (result if pertoken_scale is None else result * pertoken_scale[:, None]).to(dtype)


def _convert_quant_matmul(x: Any, weight: Any, scale: Any, bias: Any, pertoken_scale: Any, dtype: Any) -> Any:
    rest = {"dtype": ge_dtype(dtype), "transpose_x2": True}
    return ge().QuantBatchMatmulV3(x, weight, scale, None, bias, pertoken_scale, **rest)


def _check_quant_matmul(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    if node.outputs[0].dtype is torch.int32 and not chip.limits(node.type).int32_result:
        raise GeGraphError("QuantBatchMatmulV3 gives no int32 here")
    for name in ("x1", "x2"):
        last = shape_of(inputs, name)[-1]
        if last > MAX_SIZE:
            raise GeGraphError(f"{name}'s last dimension is {last}; the limit is {MAX_SIZE}")


def _fake_dequantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x int32 [rows, out] * scale float32 [out], rounded once to `dtype`, float16 or bfloat16."""
    torch._check(x.dtype == torch.int32 and x.dim() == 2, lambda: "dequantize: x must be a matrix of int32")
    torch._check(scale.dtype == torch.float32, lambda: "dequantize: scale must be float32")
    return torch.empty_like(x, dtype=dtype)


def _fake_weight_quant_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [rows, in] @ (weight [out, in] * scale [out, 1]) transposed; scale has x's dtype."""
    torch._check(weight.dtype == torch.int8, lambda: "weight_quant_matmul: weight must be int8")
    torch._check(scale.dtype == x.dtype, lambda: "weight_quant_matmul: scale must have x's dtype")
    return x.new_empty(x.shape[0], weight.shape[0])


def _weight_quant_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, (weight.float() * scale.float()[:, None]).to(x.dtype))


def _convert_weight_quant_matmul(x: Any, weight: Any, scale: Any) -> Any:
    unused = dict.fromkeys(("antiquant_offset", "quant_scale", "quant_offset", "bias"))
    return ge().WeightQuantBatchMatmulV2(x, weight, scale, **unused, transpose_weight=True)


def _check_weight_quant_matmul(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    for size in shape_of(inputs, "weight"):
        if size > MAX_SIZE:
            raise GeGraphError(f"a size of the weight is {size}; the limit is {MAX_SIZE}")


OPS = (
    AscendOp(
        "ascend::quant_matmul",
        "QuantBatchMatmulV3",
        schema="(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? pertoken_scale, ScalarType dtype)"
        " -> Tensor",
        fake=_fake_quant_matmul,
        convert=_convert_quant_matmul,
        cpu=_quant_matmul,
        check=_check_quant_matmul,
        work=product("x1", "x2"),
    ),
    AscendOp(
        "ascend::dequantize",
        "DequantBias",
        schema="(Tensor x, Tensor scale, ScalarType dtype) -> Tensor",
        fake=_fake_dequantize,
        convert=lambda x, scale, dtype: ge().dequant_bias(x, scale, None, None, output_dtype=ge_dtype(dtype)),
        cpu=lambda x, scale, dtype: (x.float() * scale).to(dtype),
        work=per_element(1),
    ),
    AscendOp(
        "ascend::weight_quant_matmul",
        "WeightQuantBatchMatmulV2",
        schema="(Tensor x, Tensor weight, Tensor scale) -> Tensor",
        fake=_fake_weight_quant_matmul,
        convert=_convert_weight_quant_matmul,
        cpu=_weight_quant_matmul,
        check=_check_weight_quant_matmul,
        work=product("x", "weight"),
    ),
)
