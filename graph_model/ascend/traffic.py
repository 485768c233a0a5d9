"""Bytes moved and operations of any node of a GE graph: by its family's rule, or, of plain ops, by those here.

Views cost nothing; a gather reads what it gathers; the rest reads its inputs and writes its outputs once.
"""

from __future__ import annotations

import math

from graph_gemma.graph_model.ascend.ge_graph import FREE, Node, element_count
from graph_gemma.graph_model.ascend.ops import BY_GE_TYPE
from graph_gemma.graph_model.ascend.ops.collective import collective_work
from graph_gemma.graph_model.ascend.work import (
    FUNCTION,
    SOFTMAX,
    Operands,
    Uncountable,
    Work,
    WorkRule,
    per_element,
    product,
    update,
)


def work_of(node: Node, operands: Operands, context_length: int | None = None) -> Work:
    """What `node` moves and computes. Raises Uncountable.

    context_length: tokens that a row of attention sees; None: all that its block table or keys hold.
    """
    if node.type in FREE:
        return Work()
    if operands.open or not operands.outputs:
        raise Uncountable(f"the shape of {', '.join(operands.open) or 'its output'} is not declared")
    if node.type in BY_GE_TYPE:
        rule = BY_GE_TYPE[node.type].work
    elif node.type.startswith("Hcom"):
        rule = collective_work
    else:
        rule = _PLAIN.get(node.type, per_element(1))
    return rule(node, operands, context_length)


def _take(node: Node, operands: Operands, context_length: int | None) -> Work:
    taken = operands.bytes_written()
    return Work(operands.bytes_read("x") + taken, taken)


def _sort(node: Node, operands: Operands, context_length: int | None) -> Work:
    largest = max((*operands.inputs.values(), *operands.outputs), key=element_count)
    steps = max(1, math.ceil(math.log2(max(2, (largest.shape or (1,))[-1]))))
    return per_element(steps)(node, operands, context_length)


_PLAIN: dict[str, WorkRule] = {
    **dict.fromkeys(("Exp", "Log", "Cos", "Sin", "Tanh", "Erf", "Sigmoid", "Pow"), per_element(FUNCTION)),
    **dict.fromkeys(("Gelu", "GeluV2"), per_element(FUNCTION + 6)),  # tanh of a cubic, and two products
    **dict.fromkeys(("SoftmaxV2", "LogSoftmaxV2"), per_element(SOFTMAX)),
    **dict.fromkeys(
        ("Cast", "ConcatV2", "ConcatD", "Pack", "Split", "SplitV", "Transpose", "TensorMove"), per_element(0)
    ),
    **dict.fromkeys(("BroadcastTo", "Expand", "Tile", "Fill", "ZerosLike", "OnesLike"), per_element(0)),
    **dict.fromkeys(("MatMul", "BatchMatMulV2"), product("x1", "x2")),
    **dict.fromkeys(("Sort", "TopK", "TopKV2"), _sort),
    **dict.fromkeys(
        ("GatherV2", "Gather", "GatherElements", "GatherNd", "IndexByTensor", "Slice", "StridedSliceV2"), _take
    ),
    "Assign": update(("ref",), ("value",)),
}
