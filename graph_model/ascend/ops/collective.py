"""Collectives: MatmulAllReduce, and the bytes that HCCL's send."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model import ops  # noqa: F401  (defines gemma.all_reduce)
from graph_gemma.graph_model.ascend.ge_graph import (
    GeGraphError,
    Node,
    TensorDesc,
    byte_count,
    element_count,
    group_size,
)
from graph_gemma.graph_model.ascend.ops.linear import fake_linear
from graph_gemma.graph_model.ascend.ops.op import AscendOp, ge
from graph_gemma.graph_model.ascend.work import Operands, Uncountable, Work, product
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.errors import UserError


def check_matmul_all_reduce(chip: Chip, world_size: int) -> None:
    """Raise UserError unless the chip joins products and all-reduces of so many ranks in one kernel."""
    setting = "passes.ascend_matmul_all_reduce.enabled=false"
    if not chip.has("MatmulAllReduce"):
        raise UserError(
            f"soc={chip.name}: passes.ascend_matmul_all_reduce is enabled; the {chip.product} has no MatmulAllReduce. "
            f"Leave {setting}."
        )
    ranks = chip.limits("MatmulAllReduce").ranks
    if world_size not in ranks:
        sizes = ", ".join(map(str, ranks))
        raise UserError(
            f"soc={chip.name}: passes.ascend_matmul_all_reduce is enabled and world_size is {world_size}; "
            f"MatmulAllReduce joins {sizes} devices of one server. Take one of these, or {setting}."
        )


def _matmul_all_reduce(x: Tensor, weight: Tensor) -> Tensor:
    """The sum over all ranks of x [rows, in] @ weight [out, in] transposed."""
    return torch.ops.gemma.all_reduce(F.linear(x, weight))


def _convert_matmul_all_reduce(x: Any, weight: Any) -> Any:
    from torchair._ge_concrete_graph.hcom_utils import get_group_name_and_record

    group = torch.distributed.distributed_c10d._get_default_group()
    ranks = torch.distributed.get_process_group_ranks(group)
    tag = torch.distributed.distributed_c10d._get_group_tag(group)
    name = get_group_name_and_record(tag, ranks, len(ranks))
    of_quantized_products = ("antiquant_scale", "antiquant_offset", "dequant_scale", "pertoken_scale")
    unused = ("bias", "x3", *of_quantized_products, "comm_quant_scale_1", "comm_quant_scale_2")
    return ge().MatmulAllReduce(x, weight, **dict.fromkeys(unused), group=name, is_trans_b=True)


def _check_matmul_all_reduce(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    ranks, size = chip.limits(node.type).ranks, group_size(node)
    if size not in ranks:
        raise GeGraphError(f"{size} ranks; it joins {', '.join(map(str, ranks))}")


def collective_work(node: Node, operands: Operands, context_length: int | None = None) -> Work:
    """Every chip of the group sends to every other over a link of its own, as in a server of full mesh."""
    size = _group_size(node)
    sent = operands.bytes_read()
    # Gather and broadcast send all to everyone.
    link = {"HcomAllReduce": _all_reduced(sent, size), "HcomReduceScatter": sent / size}.get(node.type, float(sent))
    reduces = node.type in ("HcomAllReduce", "HcomReduceScatter")
    vector = element_count(next(iter(operands.inputs.values()))) if reduces else 0
    return Work(sent, operands.bytes_written(), vector=vector, link=link if size > 1 else 0.0)


def _matmul_all_reduce_work(node: Node, operands: Operands, context_length: int | None) -> Work:
    """The product's result travels while it is computed: nothing of it is written and read in between."""
    size = _group_size(node)
    work = product("x1", "x2")(node, operands, None)
    result = operands.outputs[0]
    link = _all_reduced(byte_count(result), size) if size > 1 else 0.0
    return replace(work, vector=work.vector + element_count(result), link=link)


def _all_reduced(size: int, ranks: int) -> float:
    """Bytes on a link: each chip reduces its share of `size` bytes and sends it back to all."""
    return 2 * size / ranks


def _group_size(node: Node) -> int:
    size = group_size(node)
    if size is None:
        raise Uncountable("the size of its group is not in the graph")
    return size


OPS = (
    AscendOp(
        "ascend::matmul_all_reduce",
        "MatmulAllReduce",
        schema="(Tensor x, Tensor weight) -> Tensor",
        fake=fake_linear,
        convert=_convert_matmul_all_reduce,
        cpu=_matmul_all_reduce,
        check=_check_matmul_all_reduce,
        work=_matmul_all_reduce_work,
    ),
)
