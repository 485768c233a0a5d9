"""Converters to GE of the ops in ops.py, and of ``torch.ops.npu.npu_add_rms_norm_quant``, for which torchair has none.

`register_converters` teaches torchair to lower them; the stand-in and the device call it after torchair is loaded.
"""

from __future__ import annotations

from typing import Any

import torch

import runners.backends.ascend.ops  # noqa: F401 (defines the ops)

# Inputs of IncreFlashAttention that serve quantized caches and position bias.
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
# Inputs of MatmulAllReduce that serve biases and quantized products.
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

    # GemmV2: ops-nn matmul/gemm_v2/op_graph/gemm_v2_proto.h
    gemm_v2_ir = (
        IrDef("GemmV2")
        .input("a", "")
        .input("b", "")
        .input("alpha", "")
        .input("beta", "")
        .input("c", "")
        .attr("transpose_a", attr.Bool(False))
        .attr("transpose_b", attr.Bool(False))
        .output("c", "")
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

    @register_fx_node_ge_converter(torch.ops.ascend.gemm.default)
    def convert_gemm(x: Any, weight: Any, one: Any, total: Any, meta_outputs: Any = None) -> Any:
        return ge_op(
            "GemmV2",
            inputs={"a": x, "b": weight, "alpha": one, "beta": one, "c": ge.TensorMove(total)},
            attrs={"transpose_b": attr.Bool(True)},
            outputs=["c"],
            ir=gemm_v2_ir,
        )

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

    @register_fx_node_ge_converter(torch.ops.ascend.dequantize.default)
    def convert_dequantize(x: Any, scale: Any, dtype: Any, meta_outputs: Any = None) -> Any:
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
