"""What one node of a GE graph moves and computes, by its op type.

Every input is read once and every output written once, but for these: views cost nothing; an input written by
reference costs what is written into it; a gather reads what it gathers; paged attention reads each row's context.
Operations are those of the definition: a multiply-add of a matrix product is two; functions such as exp count as ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from graph_model.ascend.ge_graph import Node, TensorDesc, group_size
from runners.backends.ascend.printer import FREE, written_inputs
from runners.backends.ascend.tensors import TensorKey, byte_count, element_count

_FUNCTION = 10  # exp, cos, ...: a polynomial
_SOFTMAX = _FUNCTION + 4  # per score: scale, maximum, subtract, exp, sum
# Vector operations per element of the largest operand; 1 where nothing is said.
_PER_ELEMENT = {
    **dict.fromkeys(("Exp", "Log", "Cos", "Sin", "Tanh", "Erf", "Sigmoid", "Pow"), _FUNCTION),
    **dict.fromkeys(("Gelu", "GeluV2", "GeGluV2"), _FUNCTION + 6),  # tanh of a cubic, and two products
    **dict.fromkeys(("SoftmaxV2", "LogSoftmaxV2"), _SOFTMAX),
    **dict.fromkeys(("RmsNorm", "GemmaRmsNorm", "AddRmsNorm"), 5),  # square, sum, two products, an addition
    **dict.fromkeys(("AddRmsNormQuant", "AddRmsNormDynamicQuant"), 8),
    **dict.fromkeys(("DynamicQuant", "DynamicQuantUpdateScatter"), 4),
    "RotaryMul": 4,  # two products, an addition, a sign
    **dict.fromkeys(("Cast", "ConcatV2", "ConcatD", "Pack", "Split", "SplitV", "Transpose", "TensorMove"), 0),
    **dict.fromkeys(("BroadcastTo", "Expand", "Tile", "Fill", "ZerosLike", "OnesLike"), 0),
}
_SORTS = ("Sort", "TopK", "TopKV2")
_TAKES = ("GatherV2", "Gather", "GatherElements", "GatherNd", "IndexByTensor", "Slice", "StridedSliceV2")


class Uncountable(Exception):
    """The node's cost cannot be told; the message says why."""


@dataclass(frozen=True)
class Work:
    """read, written: bytes of device memory. matrix, vector: operations. matrix_dtype: of the product's inputs.
    link: bytes sent to each other chip of the group, one way."""

    read: int = 0
    written: int = 0
    matrix: int = 0
    vector: int = 0
    matrix_dtype: torch.dtype | None = None
    link: float = 0.0


@dataclass(frozen=True)
class Operands:
    """The tensors of a node: inputs by name, outputs that something could read; `open`: inputs of unknown form."""

    inputs: dict[str, TensorDesc]
    outputs: list[TensorDesc]
    open: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, node: Node, descs: dict[TensorKey, TensorDesc]) -> Operands:
        present = {edge.name: (edge.producer, edge.index) for edge in node.inputs if edge.producer}
        return cls(
            {name: descs[key] for name, key in present.items() if key in descs},
            [descs[node.name, i] for i in range(len(node.outputs)) if (node.name, i) in descs],
            [name for name, key in present.items() if key not in descs],
        )

    def __getitem__(self, name: str) -> TensorDesc:
        """The input of that name, or the first member of a dynamic input."""
        found = self.inputs.get(name) or self.inputs.get(f"{name}0")
        if found is None:
            raise Uncountable(f"it has no input {name}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def bytes_read(self, *but: str) -> int:
        return sum(byte_count(desc) for name, desc in self.inputs.items() if name not in but)

    def bytes_written(self) -> int:
        return sum(map(byte_count, self.outputs))


def work_of(node: Node, operands: Operands, context_length: int | None = None) -> Work:
    """What `node` moves and computes. Raises Uncountable.

    context_length: tokens that a row of attention sees; None: all that its block table or keys hold.
    """
    if node.type in FREE:
        return Work()
    if operands.open or not operands.outputs:
        raise Uncountable(f"the shape of {', '.join(operands.open) or 'its output'} is not declared")
    if "FlashAttention" in node.type or node.type == "FusedInferAttentionScore":
        return _attention(node, operands, context_length)
    if node.type.startswith("Hcom"):
        return _collective(node, operands)
    if node.type == "MatmulAllReduce":
        return _product_and_all_reduce(node, operands)
    if node.type in _PRODUCTS:
        return _PRODUCTS[node.type](node, operands)
    if node.type in _TAKES:
        taken = operands.bytes_written()
        return Work(operands.bytes_read("x") + taken, taken)
    written = written_inputs(node.type)
    if node.type == "DynamicQuantUpdateScatter":
        rows = operands["updates"]
        assert rows.shape is not None
        elements = element_count(rows)  # an int8 each, and a float32 scale for each row
        vector = elements * _PER_ELEMENT[node.type]
        return Work(operands.bytes_read(*written), elements + 4 * elements // rows.shape[-1], vector=vector)
    if written:
        updates = operands.bytes_read(*written)
        return Work(updates, sum(byte_count(operands[name]) for name in _UPDATES[node.type]))
    return Work(operands.bytes_read(), operands.bytes_written(), vector=_vector_ops(node.type, operands))


def _vector_ops(op_type: str, operands: Operands) -> int:
    tensors = [*operands.inputs.values(), *operands.outputs]
    largest = max(tensors, key=element_count)
    elements = element_count(largest)
    if op_type in _SORTS:
        return elements * max(1, math.ceil(math.log2(max(2, (largest.shape or (1,))[-1]))))
    return elements * _PER_ELEMENT.get(op_type, 1)


def _product(x: str, weight: str) -> Callable[[Node, Operands], Work]:
    """A matrix product of inputs `x` and `weight`."""

    def work(node: Node, operands: Operands) -> Work:
        left, right, out = operands[x], operands[weight], operands.outputs[0]
        transposed = node.attrs.get(f"transpose_{x}") or node.attrs.get(f"adj_{x}")
        assert left.shape is not None
        inner = left.shape[-2 if transposed else -1]
        # A weight of another dtype is expanded on the vector unit first: subtract, multiply.
        vector = 2 * element_count(right) if right.dtype != left.dtype else 0
        if left.dtype is torch.int8:
            vector = 2 * element_count(out)  # the scales
        return Work(
            operands.bytes_read(),
            operands.bytes_written(),
            2 * element_count(out) * inner,
            vector,
            left.dtype,
        )

    return work


_PRODUCTS = {
    **dict.fromkeys(("MatMul", "MatMulV2", "BatchMatMul", "BatchMatMulV2", "QuantBatchMatmulV3"), _product("x1", "x2")),
    "GemmV2": _product("a", "b"),
    "WeightQuantBatchMatmulV2": _product("x", "weight"),
}
# What ops that write by reference write.
_UPDATES = {"ScatterPaKvCache": ("key", "value"), "ScatterNdUpdate": ("updates",), "Assign": ("value",)}


def _attention(node: Node, operands: Operands, context_length: int | None) -> Work:
    """Keys and values are read once per row, up to its context; a causal mask hides half of a chunk from itself."""
    query, key = operands["query"], operands["key"]
    assert query.shape is not None
    assert key.shape is not None
    heads_first = node.attrs.get("input_layout", "BSH") == "BNSD"
    rows, tokens = query.shape[0], query.shape[2 if heads_first else 1]
    heads = node.attrs["num_heads"]
    paged = "block_table" in operands
    if paged:
        table = operands["block_table"].shape
        assert table is not None
        capacity = table[1] * node.attrs["block_size"]
        held = key.shape[0] * node.attrs["block_size"]
    else:
        capacity = key.shape[2 if heads_first else 1]
        held = rows * capacity
    knows_lengths = any(name in operands for name in ("actual_seq_lengths_kv", "actual_seq_lengths"))
    context = min(context_length, capacity) if context_length is not None and knows_lengths else capacity
    of_cache = ("key", "key0", "value", "value0", "key_antiquant_scale", "value_antiquant_scale")
    cache_bytes = sum(byte_count(operands[name]) for name in of_cache if name in operands) * rows * context // held

    read = operands.bytes_read(*of_cache, "atten_mask") + cache_bytes
    hidden = 0
    if "atten_mask" in operands:
        mask = byte_count(operands["atten_mask"])
        causal = node.attrs.get("sparse_mode", 0) == 3  # the mask is a template, of which the diagonal is read
        hidden = tokens * (tokens - 1) // 2 if causal and context >= tokens else 0
        read += min(mask, tokens * tokens) if causal else mask
    scores = rows * heads * (tokens * context - hidden)
    head_dim = element_count(query) // (rows * tokens * heads)
    return Work(read, operands.bytes_written(), 4 * scores * head_dim, scores * _SOFTMAX, query.dtype)


def _collective(node: Node, operands: Operands) -> Work:
    """Every chip of the group sends to every other over a link of its own, as in a server of full mesh."""
    size = _group_size(node)
    sent = operands.bytes_read()
    # Gather and broadcast send all to everyone.
    link = {"HcomAllReduce": _all_reduced(sent, size), "HcomReduceScatter": sent / size}.get(node.type, float(sent))
    reduces = node.type in ("HcomAllReduce", "HcomReduceScatter")
    vector = element_count(next(iter(operands.inputs.values()))) if reduces else 0
    return Work(sent, operands.bytes_written(), vector=vector, link=link if size > 1 else 0.0)


def _product_and_all_reduce(node: Node, operands: Operands) -> Work:
    """The product's result travels while it is computed: nothing of it is written and read in between."""
    size = _group_size(node)
    work = _product("x1", "x2")(node, operands)
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
