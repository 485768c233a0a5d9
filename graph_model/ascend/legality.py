"""What a chip refuses, of a model's settings and of a lowered graph. Off the device torchair refuses nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from graph_model.ascend.ge_graph import GeGraph, GeGraphError, Node, TensorDesc, group_size
from graph_model.ascend.ops.attention import (
    HEAD_DIM_ALIGNMENT,
    INT8_HEAD_DIM_ALIGNMENT,
    check_block_size,
    max_head_dim,
)
from graph_model.ascend.ops.quant_matmul import MAX_SIZE
from graph_model.ascend.ops.rotary import fused_rotary
from graph_model.chips.chip import Chip, Limits
from graph_model.chips.registry import CHIPS
from graph_model.errors import UserError
from graph_model.quantization import kv8
from graph_model.quantization.linears import SCHEMES, Quantization
from graph_model.quantization.schemes import find_scheme, scheme_of

Rule = Callable[[Node, dict[str, TensorDesc], Chip], None]


def check_model(chip: Chip, dtype: str, head_dim: int, heads: int, kv_heads: int, block_size: int) -> None:
    """Raise UserError if the chip cannot run the model at all, in whatever way; heads are those of one rank."""
    if dtype not in chip.dtypes:
        raise UserError(
            f"soc={chip.name}: dtype is {dtype}; the {chip.product} multiplies matrices in {' or '.join(chip.dtypes)} "
            f"only. Set dtype={chip.dtypes[0]}."
        )
    most = max_head_dim(chip)
    if head_dim % HEAD_DIM_ALIGNMENT or head_dim > most:
        raise UserError(
            f"soc={chip.name}: head_dim is {head_dim}; fused attention takes multiples of {HEAD_DIM_ALIGNMENT} up to "
            f"{most}. No setting changes a checkpoint's head_dim; choose another model or backend."
        )
    if heads % kv_heads:
        raise UserError(
            f"soc={chip.name}: one rank has {heads} query heads and {kv_heads} key heads; the first must be a multiple "
            "of the second. Choose another world size."
        )
    check_block_size(chip, block_size)


def check_quantization(chip: Chip, quantization: Quantization, head_dim: int, block_size: int) -> None:
    """Raise UserError if the chip cannot run a model that is quantized in this way."""
    if quantization.kv8:
        if not all(map(chip.has, kv8.ASCEND_OPS)):
            raise UserError(
                f"soc={chip.name}: quant.kv8, an int8 cache with a scale per token and head, needs "
                f"{' and '.join(kv8.ASCEND_OPS)}, which the {chip.product} does not have. Leave quant.kv8=false."
            )
        if head_dim % INT8_HEAD_DIM_ALIGNMENT:
            raise UserError(
                f"soc={chip.name}: head_dim is {head_dim}; with quant.kv8 it must be a multiple of "
                f"{INT8_HEAD_DIM_ALIGNMENT}. Leave quant.kv8=false."
            )
        check_block_size(chip, block_size, int8_cache=True)
    scheme = scheme_of(quantization)
    if scheme is not None and (lacking := [op for op in scheme.ascend_ops if not chip.has(op)]):
        others = [name for name in SCHEMES if all(map(chip.has, find_scheme(name).ascend_ops))]
        raise UserError(
            f"soc={chip.name}: quantization {scheme.name} needs {' and '.join(lacking)}, which the {chip.product} is "
            f"not known to have. Take {' or '.join(others)}."
        )


def check_graph(graph: GeGraph, chip: Chip) -> None:
    """Raise GeGraphError naming the first node that `chip` would refuse, and the rule."""
    _check_phase(graph, chip)
    nodes = graph.by_name()
    for node in graph.nodes:
        inputs = {}
        for edge in node.inputs:
            if edge.producer:
                producer = nodes[edge.producer]
                inputs[edge.name] = producer.outputs[edge.index]
        try:
            _check_dtypes(node, chip)
            if node.type in _OURS and not chip.has(node.type):
                raise GeGraphError("the chip has no such op")
            rule = _RULES.get(node.type)
            if rule is not None:
                rule(node, inputs, chip)
        except (GeGraphError, UserError) as error:
            raise GeGraphError(f"{node.type} {node.name} on {chip.product}: {error}") from None


def _check_dtypes(node: Node, chip: Chip) -> None:
    if "bfloat16" not in chip.dtypes and any(desc.dtype is torch.bfloat16 for desc in node.outputs):
        raise GeGraphError("the chip has no bfloat16")


def _check_phase(graph: GeGraph, chip: Chip) -> None:
    """MatmulAllReduce is for steps of prompts, whose attention has several query tokens."""
    fused = [node for node in graph.nodes if node.type == "MatmulAllReduce"]
    nodes = graph.by_name()
    for node in graph.nodes if fused else ():
        if node.type == "FusedInferAttentionScore":
            query = next(edge for edge in node.inputs if edge.name == "query")
            shape = nodes[query.producer].outputs[query.index].shape or ()
            if shape[2 if node.attrs.get("input_layout") == "BNSD" else 1] == 1:
                raise GeGraphError(f"MatmulAllReduce {fused[0].name} on {chip.product}: not in a decode step")


def _matmul_all_reduce(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    ranks, size = chip.limits(node.type).ranks, group_size(node)
    if size not in ranks:
        raise GeGraphError(f"{size} ranks; it joins {', '.join(map(str, ranks))}")


def _fused_infer(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    query = _shape(inputs, "query")
    layout = node.attrs.get("input_layout", "BSH")
    head_dim = _head_dim(query, layout, node.attrs["num_heads"], chip.limits(node.type))
    if "block_table" in inputs:
        tokens = query[2 if layout == "BNSD" else 1]
        int8 = inputs["key0"].dtype is torch.int8
        if int8 and tokens > 1:
            raise GeGraphError("a paged int8 cache serves one query token only")
        if int8 and head_dim % INT8_HEAD_DIM_ALIGNMENT:
            raise GeGraphError(f"head_dim {head_dim}; with an int8 cache it is a multiple of 32")
        check_block_size(chip, node.attrs["block_size"], query_tokens=tokens, int8_cache=int8)


def _incre(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    query, limits = _shape(inputs, "query"), chip.limits(node.type)
    heads, kv_heads = node.attrs["num_heads"], node.attrs.get("num_key_value_heads", 1) or node.attrs["num_heads"]
    head_dim = _head_dim(query, node.attrs.get("input_layout", "BSH"), heads, limits)
    if "block_table" in inputs:
        check_block_size(chip, node.attrs["block_size"])
    if limits.max_grouped_head_dim is not None and heads != kv_heads and head_dim > limits.max_grouped_head_dim:
        raise GeGraphError(f"grouped heads need head_dim <= {limits.max_grouped_head_dim}, it is {head_dim}")
    if limits.max_rows is not None and query[0] > limits.max_rows:
        raise GeGraphError(f"{query[0]} rows; the limit is {limits.max_rows}")


def _prompt(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    heads, limits = node.attrs["num_heads"], chip.limits(node.type)
    _head_dim(_shape(inputs, "query"), node.attrs.get("input_layout", "BSH"), heads, limits)
    if limits.max_grouped_head_dim == 0 and (node.attrs.get("num_key_value_heads", 1) or heads) != heads:
        raise GeGraphError("PromptFlashAttention takes as many key heads as query heads here")
    lengths = {"actual_seq_lengths", "actual_seq_lengths_kv"} & inputs.keys()
    if limits.mask_only and (lengths or node.attrs.get("sparse_mode", 0)):
        raise GeGraphError("PromptFlashAttention takes sparse_mode 0 and no lengths here")


def _head_dim(query: tuple[int, ...], layout: str, heads: int, limits: Limits) -> int:
    if layout not in ("BSH", "BSND", "BNSD"):
        raise GeGraphError(f"input_layout {layout}")
    head_dim = query[-1] // heads if layout == "BSH" else query[-1]
    if head_dim % HEAD_DIM_ALIGNMENT or head_dim > (limits.max_head_dim or head_dim):
        raise GeGraphError(f"head_dim {head_dim}; it takes multiples of 16 up to {limits.max_head_dim}")
    return head_dim


def _rms_norm(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    if not chip.limits(node.type).float32_weight and inputs["x"].dtype != inputs["gamma"].dtype:
        raise GeGraphError("RmsNorm's weight must have x's dtype here")


def _rotary(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    head_dim = _shape(inputs, "x")[-1]
    if not fused_rotary(chip, head_dim):
        most = chip.limits(node.type).max_head_dim
        raise GeGraphError(f"RotaryMul takes multiples of 64 up to {most}, head_dim is {head_dim}")


def _quant_matmul(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    if node.outputs[0].dtype is torch.int32 and not chip.limits(node.type).int32_result:
        raise GeGraphError("QuantBatchMatmulV3 gives no int32 here")
    for name in ("x1", "x2"):
        last = _shape(inputs, name)[-1]
        if last > MAX_SIZE:
            raise GeGraphError(f"{name}'s last dimension is {last}; the limit is {MAX_SIZE}")


def _weight_quant_matmul(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    for size in _shape(inputs, "weight"):
        if size > MAX_SIZE:
            raise GeGraphError(f"a size of the weight is {size}; the limit is {MAX_SIZE}")


def _dynamic_quant_scatter(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    size = _shape(inputs, "updates")[-1]
    if size % INT8_HEAD_DIM_ALIGNMENT:
        raise GeGraphError(f"a last axis of {size}; it is a multiple of 32")
    if _shape(inputs, "updates")[0] > _shape(inputs, "var")[0]:
        raise GeGraphError("more updates than the cache has places")


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
    "RmsNorm": _rms_norm,
    "RotaryMul": _rotary,
    "QuantBatchMatmulV3": _quant_matmul,
    "WeightQuantBatchMatmulV2": _weight_quant_matmul,
    "DynamicQuantUpdateScatter": _dynamic_quant_scatter,
}
# All op types that a rule or a choice of ours is about.
_OURS = {op for chip in CHIPS.values() for op in chip.ops}
