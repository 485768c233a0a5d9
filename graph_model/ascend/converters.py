"""Ops that GE has and torchair cannot lower to: their torch schemas and fake kernels, and converters to GE.

Importing this module defines the ops as ``torch.ops.ascend.*``, without torch_npu, so that passes can write them into
a graph anywhere. `register_converters` teaches torchair to lower them; the stand-in and the device call it after
torchair is loaded. On the device the ops run inside a lowered graph only; kernels.py gives them a meaning on the CPU.

  gemma_rms_norm          RMS norm with 1 + weight, one rounding
  linear                  x @ weight.T with weight stored [out, in]: no Transpose at run time
  matmul_all_reduce       linear, summed over the ranks by the same kernel
  batch_matmul            a batched product with a factor stored transposed: no Transpose of gathered keys
  quant_matmul            int8 x @ int8 weight.T, scaled; weight stored [out, in], any number of rows
  dequantise              int32 * scale, rounded once
  weight_quant_matmul     x @ (int8 weight * scale).T with weight stored [out, in]
  incre_flash_attention   decode attention with the keys' lengths as a tensor: one graph for all lengths
  dynamic_quant_scatter_  rows quantised each with a scale of its own, and both written into caches, in one kernel

and ``torch.ops.npu.npu_add_rms_norm_quant``, an op of torch_npu that torchair has no converter for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("ascend", "FRAGMENT")
_SCHEMAS = (
    "gemma_rms_norm(Tensor x, Tensor weight, float epsilon=1e-06) -> Tensor",
    "linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    "matmul_all_reduce(Tensor x, Tensor weight) -> Tensor",
    "batch_matmul(Tensor x1, Tensor x2, bool adj_x2=False) -> Tensor",
    "quant_matmul(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? pertoken_scale, ScalarType dtype)"
    " -> Tensor",
    "dequantise(Tensor x, Tensor scale, ScalarType dtype) -> Tensor",
    "weight_quant_matmul(Tensor x, Tensor weight, Tensor scale) -> Tensor",
    "incre_flash_attention(Tensor query, Tensor key, Tensor value, Tensor actual_seq_lengths, *, "
    "Tensor? atten_mask=None, Tensor? block_table=None, int num_heads, int num_key_value_heads, float scale, "
    'str input_layout="BSH", int block_size=0) -> Tensor',
    "dynamic_quant_scatter_(Tensor(a!) cache, Tensor(b!) scales, Tensor places, Tensor rows) -> ()",
    "dynamic_quant_scatter(Tensor cache, Tensor scales, Tensor places, Tensor rows) -> (Tensor, Tensor)",
)
# Inputs of IncreFlashAttention that serve quantised caches and position bias.
_UNUSED_INPUTS = (
    "pse_shift",
    "dequant_scale1",
    "quant_scale1",
    "dequant_scale2",
    "quant_scale2",
    "quant_offset2",
    "antiquant_scale",
    "antiquant_offset",
    "kv_padding_size",
)
# Inputs of MatmulAllReduce that serve biases and quantised products.
_UNUSED_OF_MATMUL_ALL_REDUCE = (
    "bias",
    "x3",
    "antiquant_scale",
    "antiquant_offset",
    "dequant_scale",
    "pertoken_scale",
    "comm_quant_scale_1",
    "comm_quant_scale_2",
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


@torch.library.register_fake("ascend::dequantise")
def _dequantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x int32 [rows, out] * scale float32 [out], rounded once to `dtype`, float16 or bfloat16."""
    torch._check(x.dtype == torch.int32 and x.dim() == 2, lambda: "dequantise: x must be a matrix of int32")
    torch._check(scale.dtype == torch.float32, lambda: "dequantise: scale must be float32")
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


def register_converters() -> None:
    """Register the GE converters with torchair, which must be loaded; a second call changes nothing."""
    if hasattr(torch.ops.ascend.linear.default, "_ge_converter"):
        return
    # torch.ops.air.npu_fused_infer_attention_score, whose lengths are tensors, exists only once this is imported.
    import torchair.ops._npu_fused_infer_attention_score  # noqa: F401
    from torchair import register_fx_node_ge_converter
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair._ge_concrete_graph import graph_pass
    from torchair._ge_concrete_graph.compat_ir import IrDef, ge_op
    from torchair._ge_concrete_graph.hcom_utils import get_group_name_and_record
    from torchair.ge import attr
    from torchair.ge._ge_graph import torch_type_to_ge_type

    # GemmaRmsNorm: ops-nn norm/gemma_rms_norm/op_graph/gemma_rms_norm_proto.h
    gemma_rms_norm_ir = (
        IrDef("GemmaRmsNorm")
        .input("x", "")
        .input("gamma", "")
        .attr("epsilon", attr.Float(1e-6))
        .output("y", "")
        .output("rstd", "")
    )

    # AddRmsNormQuant: ops-nn norm/add_rms_norm_quant/op_graph/add_rms_norm_quant_proto.h
    add_rms_norm_quant_ir = (
        IrDef("AddRmsNormQuant")
        .input("x1", "")
        .input("x2", "")
        .input("gamma", "")
        .input("scales1", "")
        .optional_input("scales2", "")
        .optional_input("zero_points1", "")
        .optional_input("zero_points2", "")
        .optional_input("beta", "")
        .attr("axis", attr.Int(-1))
        .attr("epsilon", attr.Float(1e-6))
        .attr("div_mode", attr.Bool(True))
        .output("y1", "")
        .output("y2", "")
        .output("x", "")
    )

    # DynamicQuantUpdateScatter: ops-nn quant/dynamic_quant_update_scatter/op_graph/..._proto.h
    dynamic_quant_update_scatter_ir = (
        IrDef("DynamicQuantUpdateScatter")
        .input("var", "")
        .input("var_scale", "")
        .input("indices", "")
        .input("updates", "")
        .optional_input("smooth_scales", "")
        .required_attr("reduce", attr.Str)
        .attr("axis", attr.Int(0))
        .output("var", "")
        .output("var_scale", "")
    )
    # torchair drops the copies around ops that write by reference if it knows which output is which input.
    references_of = graph_pass._get_output_to_input_ref_idx
    graph_pass._get_output_to_input_ref_idx = lambda op: (
        {0: 0, 1: 1} if op.type == "DynamicQuantUpdateScatter" else references_of(op)
    )

    @register_fx_node_ge_converter(torch.ops.ascend.dynamic_quant_scatter.default)
    def convert_dynamic_quant_scatter(cache: Any, scales: Any, places: Any, rows: Any, meta_outputs: Any = None) -> Any:
        var, var_scale = ge.TensorMove(cache), ge.TensorMove(scales)
        return ge_op(
            "DynamicQuantUpdateScatter",
            inputs={"var": var, "var_scale": var_scale, "indices": places, "updates": rows},
            attrs={"reduce": attr.Str("update"), "axis": attr.Int(-2)},
            outputs=["var", "var_scale"],
            ir=dynamic_quant_update_scatter_ir,
        )

    @register_fx_node_ge_converter(torch.ops.ascend.gemma_rms_norm.default)
    def convert_gemma_rms_norm(x: Any, weight: Any, epsilon: float = 1e-6, meta_outputs: Any = None) -> Any:
        y, _ = ge_op(
            "GemmaRmsNorm",
            inputs={"x": x, "gamma": weight},
            attrs={"epsilon": attr.Float(epsilon)},
            outputs=["y", "rstd"],
            ir=gemma_rms_norm_ir,
        )
        return y

    @register_fx_node_ge_converter(torch.ops.npu.npu_add_rms_norm_quant.default)
    def convert_add_rms_norm_quant(
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
        meta_outputs: Any = None,
    ) -> Any:
        inputs = {"x1": x1, "x2": x2, "gamma": gamma, "scales1": scales1, "scales2": scales2}
        inputs |= {"zero_points1": zero_points1, "zero_points2": zero_points2, "beta": beta}
        return ge_op(
            "AddRmsNormQuant",
            inputs=inputs,
            attrs={"axis": attr.Int(axis), "epsilon": attr.Float(epsilon), "div_mode": attr.Bool(div_mode)},
            outputs=["y1", "y2", "x"],
            ir=add_rms_norm_quant_ir,
        )

    @register_fx_node_ge_converter(torch.ops.ascend.linear.default)
    def convert_linear(x: Any, weight: Any, bias: Any = None, meta_outputs: Any = None) -> Any:
        return ge.MatMulV2(x, weight, bias, None, transpose_x2=True)

    @register_fx_node_ge_converter(torch.ops.ascend.matmul_all_reduce.default)
    def convert_matmul_all_reduce(x: Any, weight: Any, meta_outputs: Any = None) -> Any:
        group = torch.distributed.distributed_c10d._get_default_group()
        ranks = torch.distributed.get_process_group_ranks(group)
        tag = torch.distributed.distributed_c10d._get_group_tag(group)
        name = get_group_name_and_record(tag, ranks, len(ranks))
        return ge.MatmulAllReduce(x, weight, **dict.fromkeys(_UNUSED_OF_MATMUL_ALL_REDUCE), group=name, is_trans_b=True)

    @register_fx_node_ge_converter(torch.ops.ascend.quant_matmul.default)
    def convert_quant_matmul(
        x: Any, weight: Any, scale: Any, bias: Any, pertoken_scale: Any, dtype: Any, meta_outputs: Any = None
    ) -> Any:
        output = torch_type_to_ge_type(dtype)
        return ge.QuantBatchMatmulV3(x, weight, scale, None, bias, pertoken_scale, dtype=output, transpose_x2=True)

    @register_fx_node_ge_converter(torch.ops.ascend.dequantise.default)
    def convert_dequantise(x: Any, scale: Any, dtype: Any, meta_outputs: Any = None) -> Any:
        return ge.dequant_bias(x, scale, None, None, output_dtype=torch_type_to_ge_type(dtype))

    @register_fx_node_ge_converter(torch.ops.ascend.weight_quant_matmul.default)
    def convert_weight_quant_matmul(x: Any, weight: Any, scale: Any, meta_outputs: Any = None) -> Any:
        unused = dict.fromkeys(("antiquant_offset", "quant_scale", "quant_offset", "bias"))
        return ge.WeightQuantBatchMatmulV2(x, weight, scale, **unused, transpose_weight=True)

    @register_fx_node_ge_converter(torch.ops.ascend.batch_matmul.default)
    def convert_batch_matmul(x1: Any, x2: Any, adj_x2: bool = False, meta_outputs: Any = None) -> Any:
        return ge.BatchMatMul(x1, x2, adj_x1=False, adj_x2=adj_x2)

    @register_fx_node_ge_converter(torch.ops.ascend.incre_flash_attention.default)
    def convert_incre_flash_attention(
        query: Any,
        key: Any,
        value: Any,
        actual_seq_lengths: Any,
        *,
        atten_mask: Any = None,
        block_table: Any = None,
        num_heads: int,
        num_key_value_heads: int,
        scale: float,
        input_layout: str = "BSH",
        block_size: int = 0,
        meta_outputs: Any = None,
    ) -> Any:
        return ge.IncreFlashAttention(
            query,
            [key],
            [value],
            atten_mask=atten_mask,
            actual_seq_lengths=actual_seq_lengths,
            block_table=block_table,
            num_heads=num_heads,
            scale_value=scale,
            input_layout=input_layout,
            num_key_value_heads=num_key_value_heads,
            block_size=block_size,
            **dict.fromkeys(_UNUSED_INPUTS),
        )
