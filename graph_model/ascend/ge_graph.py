"""A GE graph as plain data, read from the protobuf that torchair hands to the engine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

# The protobuf's DataType (ge_ir.proto), used by tensor descriptors and constants.
PROTO_DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.float16,
    3: torch.int8,
    4: torch.uint8,
    5: torch.int16,
    6: torch.uint16,
    7: torch.int32,
    8: torch.int64,
    9: torch.uint32,
    10: torch.uint64,
    11: torch.bool,
    12: torch.float64,
    27: torch.bfloat16,
}
_UNDEFINED = 0
# GE's DataType (graph/types.h), used by attributes such as dst_type.
GE_DTYPES: dict[int, torch.dtype] = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    7: torch.uint16,
    8: torch.uint32,
    9: torch.int64,
    10: torch.uint64,
    11: torch.float64,
    12: torch.bool,
    27: torch.bfloat16,
}
STRUCTURE = ("Data", "RefData", "Const", "NetOutput")
# Rearrangements that cost no kernel; these, inputs and constants cost nothing.
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "ExpandDims", "Identity", "Bitcast")
FREE = (*STRUCTURE, *VIEWS)
_META = re.compile(r"Tensor\(dtype=torch\.(\w+), shape=torch\.Size\(\[([\d, ]*)\]\)")


class GeGraphError(Exception):
    """A GE graph that is damaged, illegal on a chip or unknown here, or input whose result is undefined on a chip."""


@dataclass(frozen=True)
class TensorDesc:
    """What the graph declares about one tensor; None: not declared."""

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None  # a size of -1, and a shape of (-2,), are any
    layout: str = "ND"
    fx_name: str | None = None  # the FX node's output that this tensor is
    unknown_dtype: str | None = None  # name or number of a dtype that PROTO_DTYPES does not have; dtype is None then

    def __str__(self) -> str:
        dtype = self.unknown_dtype or "?" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        shape = "?" if self.shape is None else ",".join(map(str, self.shape))
        return f"{dtype}[{shape}]"


# Producer's name and output index.
TensorKey = tuple[str, int]


def element_count(desc: TensorDesc) -> int:
    """Number of elements of a resolved descriptor."""
    assert desc.shape is not None
    return math.prod(desc.shape)


def byte_count(desc: TensorDesc) -> int:
    """Bytes of a resolved descriptor's tensor."""
    assert desc.dtype is not None
    return element_count(desc) * desc.dtype.itemsize


@dataclass(frozen=True)
class Edge:
    """One data input of a node."""

    name: str  # of the input
    producer: str  # name of the node that makes it; "": the input is absent
    index: int  # of the producer's output; -1: the input is absent


@dataclass
class Node:
    """A node of a GE graph."""

    name: str
    type: str  # of its op
    inputs: list[Edge] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)  # nodes that must run before
    outputs: list[TensorDesc] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class GeGraph:
    """A GE graph."""

    name: str
    nodes: list[Node]  # in the order of the protobuf
    attrs: dict[str, Any] = field(default_factory=dict)  # the graph's own, such as _input_placements

    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def net_output(self) -> Node:
        found = [node for node in self.nodes if node.type == "NetOutput"]
        if len(found) != 1:
            raise GeGraphError(f"graph {self.name} has {len(found)} NetOutput nodes; it must have one")
        return found[0]

    def inputs(self) -> list[Node]:
        """The Data nodes, by their index."""
        data = [node for node in self.nodes if node.type in ("Data", "RefData")]
        return sorted(data, key=lambda node: node.attrs["index"])


def group_size(node: Node) -> int | None:
    """Ranks of a collective's group; None where the graph does not say."""
    ranks = re.search(r"rank_list=([\d,]+)", str(node.attrs.get("group", "")))
    size: int | None = node.attrs.get("rank_size") or (len(ranks[1].split(",")) if ranks else None)
    return size


def read_graph(proto: Any) -> GeGraph:
    """Convert a ge.proto.GraphDef. Raises GeGraphError for attributes and dtypes that are not known here."""
    return GeGraph(
        name=proto.name,
        nodes=[_read_node(op) for op in proto.op],
        attrs={key: _read_attr(value, f"graph attribute {key}") for key, value in proto.attr.items()},
    )


def _read_node(op: Any) -> Node:
    node = Node(name=op.name, type=op.type)
    data_index = 0
    for source in op.input:
        producer, _, index = source.rpartition(":")
        if index == "-1":
            node.controls.append(producer)
            continue
        if data_index >= len(op.input_desc):
            raise GeGraphError(f"{op.type} {op.name}: input {data_index} has no descriptor")
        name = op.input_desc[data_index].name
        node.inputs.append(Edge(name, producer, int(index)) if source else Edge(name, "", -1))
        data_index += 1
    node.outputs = [_read_desc(desc) for desc in op.output_desc]
    node.attrs = {key: _read_attr(value, f"{op.type} {op.name}, {key}") for key, value in op.attr.items()}
    return node


def _read_desc(desc: Any) -> TensorDesc:
    # A converter's inner nodes have a descriptor too, but nothing was filled in: torchair's default says float32.
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = tuple(desc.shape.dim) or None
    meta = _META.match(desc.attr["_meta"].s.decode()) if "_meta" in desc.attr else None
    if meta is not None:
        shape = tuple(int(size) for size in meta[2].split(",") if size.strip())
    if meta is not None or shape is not None:
        dtype = PROTO_DTYPES.get(desc.dtype)
    fx_name = desc.attr["_fx_tensor_name"].s.decode() if "_fx_tensor_name" in desc.attr else None
    unknown = desc.dtype not in (_UNDEFINED, *PROTO_DTYPES)
    return TensorDesc(desc.name, dtype, shape, desc.layout, fx_name, _dtype_name(desc) if unknown else None)


def _dtype_name(desc: Any) -> str:
    named = desc.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number.get(desc.dtype)
    return str(desc.dtype if named is None else named.name)


def _read_attr(attr: Any, where: str) -> Any:
    kind = attr.WhichOneof("value")
    if kind in ("i", "f", "b", "dt"):
        return getattr(attr, kind)
    if kind == "s":
        return attr.s.decode()
    if kind == "t":
        return _read_tensor(attr.t, where)
    if kind == "list":
        filled = [name for name in ("s", "i", "f", "b", "dt") if len(getattr(attr.list, name))]
        if len(filled) > 1 or any(len(getattr(attr.list, name)) for name in ("bt", "td", "t", "g", "na")):
            raise GeGraphError(f"{where}: a list attribute of this kind is not known")
        values = list(getattr(attr.list, filled[0])) if filled else []
        return [value.decode() for value in values] if filled == ["s"] else values
    if kind == "list_list_int":
        return [list(row.list_i) for row in attr.list_list_int.list_list_i]
    if kind is None:
        return None
    raise GeGraphError(f"{where}: an attribute of kind {kind} is not known")


def _read_tensor(tensor: Any, where: str) -> torch.Tensor:
    dtype = PROTO_DTYPES.get(tensor.desc.dtype)
    if dtype is None:
        raise GeGraphError(f"{where}: constant of dtype {_dtype_name(tensor.desc)}, which is not known")
    shape = tuple(tensor.desc.shape.dim)
    if not tensor.data and math.prod(shape):
        raise GeGraphError(f"{where}: a constant of shape {shape} without its values")
    if not tensor.data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(shape)


def iter_edges(node: Node) -> Iterator[tuple[str, int]]:
    """(producer, output index) of every data input that is present."""
    for edge in node.inputs:
        if edge.producer:
            yield edge.producer, edge.index
