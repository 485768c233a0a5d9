"""Checks a lowered graph against the SoC tables: torchair lowers, off the device, what the chip would refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch

from graph_model.ascend.ge_graph import GeGraph, GeGraphError, Node, TensorDesc, group_size
from graph_model.chips import soc as tables
from graph_model.chips.soc import Soc
from graph_model.errors import UserError

Rule = Callable[[Node, dict[str, TensorDesc], Soc], None]


def check_graph(graph: GeGraph, soc: Soc) -> None:
    """Raise GeGraphError naming the first node that `soc` would refuse, and the rule."""
    _check_phase(graph, soc)
    nodes = graph.by_name()
    for node in graph.nodes:
        inputs = {}
        for edge in node.inputs:
            if edge.producer:
                producer = nodes[edge.producer]
                inputs[edge.name] = producer.outputs[edge.index]
        try:
            _check_dtypes(node, soc)
            rule = _RULES.get(node.type)
            if rule is not None:
                rule(node, inputs, soc)
        except (GeGraphError, UserError) as error:
            raise GeGraphError(f"{node.type} {node.name} on {soc.product}: {error}") from None


def _check_dtypes(node: Node, soc: Soc) -> None:
    if "bfloat16" not in soc.dtypes and any(desc.dtype is torch.bfloat16 for desc in node.outputs):
        raise GeGraphError("the chip has no bfloat16")


def _check_phase(graph: GeGraph, soc: Soc) -> None:
    """MatmulAllReduce is for steps of prompts, whose attention has several query tokens."""
    fused = [node for node in graph.nodes if node.type == "MatmulAllReduce"]
    nodes = graph.by_name()
    for node in graph.nodes if fused else ():
        if node.type == "FusedInferAttentionScore":
            query = next(edge for edge in node.inputs if edge.name == "query")
            shape = nodes[query.producer].outputs[query.index].shape or ()
            if shape[2 if node.attrs.get("input_layout") == "BNSD" else 1] == 1:
                raise GeGraphError(f"MatmulAllReduce {fused[0].name} on {soc.product}: not in a decode step")


def _matmul_all_reduce(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(bool(soc.matmul_all_reduce))
    size = group_size(node)
    if size not in soc.matmul_all_reduce:
        raise GeGraphError(f"{size} ranks; it joins {', '.join(map(str, soc.matmul_all_reduce))}")


def _fused_infer(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.fused_infer_attention)
    query = _shape(inputs, "query")
    layout = node.attrs.get("input_layout", "BSH")
    head_dim = _head_dim(query, layout, node.attrs["num_heads"], soc)
    if "block_table" in inputs:
        tokens = query[2 if layout == "BNSD" else 1]
        int8 = inputs["key0"].dtype is torch.int8
        if int8 and tokens > 1:
            raise GeGraphError("a paged int8 cache serves one query token only")
        if int8 and head_dim % tables.INT8_HEAD_DIM_ALIGNMENT:
            raise GeGraphError(f"head_dim {head_dim}; with an int8 cache it is a multiple of 32")
        tables.check_block_size(soc, node.attrs["block_size"], query_tokens=tokens, int8_cache=int8)


def _incre(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    query = _shape(inputs, "query")
    heads, kv_heads = node.attrs["num_heads"], node.attrs.get("num_key_value_heads", 1) or node.attrs["num_heads"]
    head_dim = _head_dim(query, node.attrs.get("input_layout", "BSH"), heads, soc)
    if "block_table" in inputs:
        tables.check_block_size(soc, node.attrs["block_size"])
    if soc.fused_infer_attention:
        return
    if heads != kv_heads and head_dim > tables.GROUPED_HEAD_DIM_310P:
        raise GeGraphError(f"grouped heads need head_dim <= {tables.GROUPED_HEAD_DIM_310P}, it is {head_dim}")
    if query[0] > tables.MAX_ROWS_310P:
        raise GeGraphError(f"{query[0]} rows; the limit is {tables.MAX_ROWS_310P}")


def _prompt(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    heads = node.attrs["num_heads"]
    _head_dim(_shape(inputs, "query"), node.attrs.get("input_layout", "BSH"), heads, soc)
    if not soc.fused_infer_attention:
        if (node.attrs.get("num_key_value_heads", 1) or heads) != heads:
            raise GeGraphError("PromptFlashAttention takes as many key heads as query heads here")
        if node.attrs.get("sparse_mode", 0) or {"actual_seq_lengths", "actual_seq_lengths_kv"} & inputs.keys():
            raise GeGraphError("PromptFlashAttention takes sparse_mode 0 and no lengths here")


def _head_dim(query: tuple[int, ...], layout: str, heads: int, soc: Soc) -> int:
    if layout not in ("BSH", "BSND", "BNSD"):
        raise GeGraphError(f"input_layout {layout}")
    head_dim = query[-1] // heads if layout == "BSH" else query[-1]
    if head_dim % tables.HEAD_DIM_ALIGNMENT or head_dim > soc.max_head_dim:
        raise GeGraphError(f"head_dim {head_dim}; it takes multiples of 16 up to {soc.max_head_dim}")
    return head_dim


def _scatter_pa(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.paged_scatter)


def _gemma_norm(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.gemma_rms_norm)


def _rms_norm(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    if not soc.fp32_norm_weight and inputs["x"].dtype != inputs["gamma"].dtype:
        raise GeGraphError("RmsNorm's weight must have x's dtype here")


def _rotary(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    head_dim = _shape(inputs, "x")[-1]
    if not tables.fused_rotary(soc, head_dim):
        raise GeGraphError(f"RotaryMul takes multiples of 64 up to {soc.rotary_head_dim}, head_dim is {head_dim}")


def _quant_matmul(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    if node.outputs[0].dtype is torch.int32 and not soc.int32_products:
        raise GeGraphError("QuantBatchMatmulV3 gives no int32 here")
    for name in ("x1", "x2"):
        last = _shape(inputs, name)[-1]
        if last > tables.MAX_QUANTIZED_SIZE:
            raise GeGraphError(f"{name}'s last dimension is {last}; the limit is {tables.MAX_QUANTIZED_SIZE}")


def _weight_quant_matmul(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    for size in _shape(inputs, "weight"):
        if size > tables.MAX_QUANTIZED_SIZE:
            raise GeGraphError(f"a size of the weight is {size}; the limit is {tables.MAX_QUANTIZED_SIZE}")


def _dequant_bias(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.int32_products)


def _gemm(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.float32_products)


def _dynamic_quant(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.dynamic_quant)


def _dynamic_quant_scatter(node: Node, inputs: dict[str, TensorDesc], soc: Soc) -> None:
    _present(soc.dynamic_quant)
    size = _shape(inputs, "updates")[-1]
    if size % tables.INT8_HEAD_DIM_ALIGNMENT:
        raise GeGraphError(f"a last axis of {size}; it is a multiple of 32")
    if _shape(inputs, "updates")[0] > _shape(inputs, "var")[0]:
        raise GeGraphError("more updates than the cache has places")


def _present(condition: bool) -> None:
    if not condition:
        raise GeGraphError("the chip has no such op")


def _shape(inputs: dict[str, TensorDesc], name: str) -> tuple[int, ...]:
    shape = inputs[name].shape
    if shape is None:
        raise GeGraphError(f"the shape of {name} is not declared")
    return shape


_RULES: dict[str, Rule] = {
    "MatmulAllReduce": _matmul_all_reduce,
    "FusedInferAttentionScore": _fused_infer,
    "IncreFlashAttention": _incre,
    "PromptFlashAttention": _prompt,
    "ScatterPaKvCache": _scatter_pa,
    "GemmaRmsNorm": _gemma_norm,
    "RmsNorm": _rms_norm,
    "RotaryMul": _rotary,
    "QuantBatchMatmulV3": _quant_matmul,
    "WeightQuantBatchMatmulV2": _weight_quant_matmul,
    "DequantBias": _dequant_bias,
    "GemmV2": _gemm,
    "DynamicQuant": _dynamic_quant,
    "AddRmsNormDynamicQuant": _dynamic_quant,
    "DynamicQuantUpdateScatter": _dynamic_quant_scatter,
}
