"""Check a model's settings and a lowered graph against a chip's limits. Off the device torchair refuses nothing."""

from __future__ import annotations

import torch

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, GeGraphError, Node
from graph_gemma.graph_model.ascend.ops import BY_GE_TYPE
from graph_gemma.graph_model.ascend.ops.attention import (
    HEAD_DIM_ALIGNMENT,
    INT8_HEAD_DIM_ALIGNMENT,
    check_block_size,
    max_head_dim,
)
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import Family
from graph_gemma.graph_model.quantization import kv8
from graph_gemma.graph_model.quantization.linears import SCHEMES, Quantization
from graph_gemma.graph_model.quantization.schemes import find_scheme, scheme_of
from graph_gemma.graph_model.tensor_parallel import Shard


def check_model(chip: Chip, dtype: str, head_dim: int, heads: int, kv_heads: int, block_size: int) -> None:
    """Raise UserError if the chip cannot run a model of this dtype and shape; heads are those of one rank."""
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


def check_layers(
    chip: Chip, family: Family, dtype: str, shard: Shard, block_size: int, quantization: Quantization | None
) -> None:
    """Raise UserError if the chip cannot run a rank's share of some layer, or its quantization."""
    for attention in family.attentions:
        heads, kv_heads = shard.heads(attention), shard.kv_heads(attention)
        check_model(chip, dtype, attention.head_dim, heads, kv_heads, block_size)
        if quantization is not None:
            check_quantization(chip, quantization, attention.head_dim, block_size)


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
            op = BY_GE_TYPE.get(node.type)
            if op is not None and not chip.has(node.type):
                raise GeGraphError("the chip has no such op")
            if op is not None and op.check is not None:
                op.check(node, inputs, chip)
        except (GeGraphError, UserError) as error:
            raise GeGraphError(f"{node.type} {node.name} on {chip.product}: {error}") from None


def _check_dtypes(node: Node, chip: Chip) -> None:
    if "bfloat16" not in chip.dtypes and any(desc.dtype is torch.bfloat16 for desc in node.outputs):
        raise GeGraphError("the chip has no bfloat16")


def _check_phase(graph: GeGraph, chip: Chip) -> None:
    """Raise GeGraphError for a MatmulAllReduce in a decode step: the op is for steps of several query tokens."""
    fused = [node for node in graph.nodes if node.type == "MatmulAllReduce"]
    nodes = graph.by_name()
    for node in graph.nodes if fused else ():
        if node.type == "FusedInferAttentionScore":
            query = next(edge for edge in node.inputs if edge.name == "query")
            shape = nodes[query.producer].outputs[query.index].shape or ()
            if shape[2 if node.attrs.get("input_layout") == "BNSD" else 1] == 1:
                raise GeGraphError(f"MatmulAllReduce {fused[0].name} on {chip.product}: not in a decode step")
