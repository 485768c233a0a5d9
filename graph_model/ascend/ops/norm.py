"""RMS norms: RmsNorm, GemmaRmsNorm, with an addition before (AddRmsNorm) and quantization after (AddRmsNormQuant).

Sources of the prototypes: ops-nn norm/gemma_rms_norm/op_graph/gemma_rms_norm_proto.h, and of AddRmsNormQuant likewise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.ops.op import AscendOp, insert_node
from graph_gemma.graph_model.ascend.ops.quantize import by_rows, to_int8
from graph_gemma.graph_model.ascend.work import per_element
from graph_gemma.graph_model.chips.chip import Chip

_EPSILON = {"norm_eps": ("epsilon", "epsilon")}
_WORK = per_element(5)  # square, sum, two products, an addition
_QUANTIZING_WORK = per_element(8)


def _normalized(x: Tensor, epsilon: float) -> Tensor:
    return x.float() * _rstd(x, epsilon)


def _rstd(x: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    return (_normalized(x, epsilon) * gamma.float()).to(x.dtype), _rstd(x, epsilon)


def _check_rms_norm(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    if not chip.limits(node.type).float32_weight and inputs["x"].dtype != inputs["gamma"].dtype:
        raise GeGraphError("RmsNorm's weight must have x's dtype here")


def _fake_gemma_rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / rms(x) * (1 + weight) over the last dimension, rounded once; weight has x's dtype."""
    torch._check(weight.dtype == x.dtype, lambda: "gemma_rms_norm: weight must have x's dtype")
    torch._check(weight.shape == x.shape[-1:], lambda: "gemma_rms_norm: weight must be a vector of x's last size")
    return torch.empty_like(x)


def _gemma_rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    return (_normalized(x, epsilon) * (1.0 + weight.float())).to(x.dtype)


def _convert_gemma_rms_norm(x: Any, weight: Any, epsilon: float = 1e-6) -> Any:
    inputs, defaults = {"x": x, "gamma": weight}, {"epsilon": 1e-6}
    return insert_node("GemmaRmsNorm", inputs, ["y", "rstd"], {"epsilon": epsilon}, defaults=defaults)[0]


def _add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    total = x1 + x2
    return _normalized(total, epsilon).to(total.dtype) * gamma, _rstd(total, epsilon), total


def _add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor,
    *,
    epsilon: float = 1e-6,
    **unused: None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert scales1.numel() == 1
    total = x1 + x2
    y = to_int8(_normalized(total, epsilon) * gamma.float() / scales1 + zero_points1.float())
    return y, torch.zeros_like(y), total


def _convert_add_rms_norm_quant(
    x1: Any,
    x2: Any,
    gamma: Any,
    scales1: Any,
    zero_points1: Any = None,
    beta: Any = None,
    scales2: Any = None,
    zero_points2: Any = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int | None = None,
) -> Any:
    optional = {"scales2": scales2, "zero_points1": zero_points1, "zero_points2": zero_points2, "beta": beta}
    return insert_node(
        "AddRmsNormQuant",
        {"x1": x1, "x2": x2, "gamma": gamma, "scales1": scales1, **optional},
        ["y1", "y2", "x"],
        {"axis": axis, "epsilon": epsilon, "div_mode": div_mode},
        optional=tuple(optional),
        defaults={"axis": -1, "epsilon": 1e-6, "div_mode": True},
    )


def _add_rms_norm_dynamic_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6, output_mask: object = None, **unused: None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    total = x1 + x2
    y, scale = by_rows(_normalized(total, epsilon) * gamma.float())
    return y, torch.zeros_like(y), total, scale, torch.zeros_like(scale)


OPS = (
    AscendOp("npu::npu_rms_norm", "RmsNorm", cpu=_rms_norm, check=_check_rms_norm, work=_WORK, carries=_EPSILON),
    AscendOp(
        "ascend::gemma_rms_norm",
        "GemmaRmsNorm",
        schema="(Tensor x, Tensor weight, float epsilon=1e-06) -> Tensor",
        fake=_fake_gemma_rms_norm,
        convert=_convert_gemma_rms_norm,
        cpu=_gemma_rms_norm,
        work=_WORK,
        carries=_EPSILON,
        computes={"norm_offset": "adds 1 to its weight"},
    ),
    AscendOp("npu::npu_add_rms_norm", "AddRmsNorm", cpu=_add_rms_norm, work=_WORK, carries=_EPSILON),
    AscendOp(
        "npu::npu_add_rms_norm_quant",
        "AddRmsNormQuant",
        convert=_convert_add_rms_norm_quant,
        cpu=_add_rms_norm_quant,
        work=_QUANTIZING_WORK,
        carries=_EPSILON,
    ),
    AscendOp(
        "npu::npu_add_rms_norm_dynamic_quant",
        "AddRmsNormDynamicQuant",
        cpu=_add_rms_norm_dynamic_quant,
        work=_QUANTIZING_WORK,
        carries=_EPSILON,
    ),
)
