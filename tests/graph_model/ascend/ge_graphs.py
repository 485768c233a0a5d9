"""GE graphs written by hand, as torchair would name their parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graph_model.ascend.ge_graph import Edge, GeGraph, Node, TensorDesc


def data(name: str, index: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (4,)) -> Node:
    return Node(name, "Data", outputs=[TensorDesc("y", dtype, shape)], attrs={"index": index})


def const(name: str, value: Tensor) -> Node:
    return Node(name, "Const", outputs=[TensorDesc("", value.dtype, tuple(value.shape))], attrs={"value": value})


def node(op_type: str, name: str, inputs: dict[str, str], *, outputs: int = 1, controls: tuple[str, ...] = (),
         **attrs: Any) -> Node:  # fmt: skip
    """inputs: input name -> "producer" or "producer:index"."""
    edges = []
    for key, source in inputs.items():
        producer, _, index = source.partition(":")
        edges.append(Edge(key, producer, int(index or 0)))
    descs = [TensorDesc(f"y{i}") for i in range(outputs)]
    return Node(name, op_type, edges, list(controls), descs, attrs)


def graph(*nodes: Node, output: tuple[str, ...], controls: tuple[str, ...] = ()) -> GeGraph:
    net_output = node("NetOutput", "NetOutput", {f"input{i}": name for i, name in enumerate(output)}, outputs=0)
    net_output.controls = list(controls)
    return GeGraph("graph", [*nodes, net_output])
