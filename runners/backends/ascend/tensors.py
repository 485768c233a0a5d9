"""Dtype and shape of every tensor of a GE graph, also of those that torchair leaves undeclared."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES, GeGraph, Node, TensorDesc, TensorKey
from graph_gemma.runners.backends.ascend.interpreter import ops as _ops  # noqa: F401  (fills the registry)
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS


def tensor_descs(graph: GeGraph) -> dict[TensorKey, TensorDesc]:
    """Descriptors of all outputs whose dtype and shape are declared, and known, or follow from the inputs.

    torchair declares what an FX node returns; a converter's inner tensors stay open. Those are derived: an output
    written by reference has its input's form, a constant its value's, a Range its length, the positions of a sort are
    int32 like its values, and the first output of any other op is taken to be computed element by element. Further
    outputs that stay open are read by nobody.
    """
    nodes = graph.by_name()
    descs: dict[TensorKey, TensorDesc] = {}
    for node in graph.nodes:  # the protobuf's order is topological
        inputs = {
            edge.name: descs[edge.producer, edge.index] for edge in node.inputs if (edge.producer, edge.index) in descs
        }
        for index, desc in enumerate(node.outputs):
            if desc.unknown_dtype is not None:
                continue
            if desc.shape is None or desc.dtype is None:
                derived = _derive(node, index, nodes, inputs, descs)
                if derived is None:
                    continue
                desc = replace(desc, dtype=derived.dtype, shape=derived.shape)
            descs[node.name, index] = desc
    return descs


def _derive(
    node: Node,
    index: int,
    nodes: dict[str, Node],
    inputs: dict[str, TensorDesc],
    descs: dict[TensorKey, TensorDesc],
) -> TensorDesc | None:
    by_reference = OPS[node.type].by_reference if node.type in OPS else {}
    if index in by_reference:
        return inputs.get(by_reference[index])
    if index == 1 and node.type in ("Sort", "TopK", "TopKV2") and (node.name, 0) in descs:
        return replace(descs[node.name, 0], dtype=torch.int32)
    if index:
        return None
    value = node.attrs.get("value")
    if node.type == "Const" and isinstance(value, torch.Tensor):
        return TensorDesc("", value.dtype, tuple(value.shape))
    if node.type == "Range":
        return _range([nodes[edge.producer].attrs.get("value") for edge in node.inputs])
    return _element_wise(node, list(inputs.values()))


def _range(bounds: list[object]) -> TensorDesc | None:
    """Of the constants start, limit and delta."""
    tensors = [bound for bound in bounds if isinstance(bound, torch.Tensor)]
    if len(tensors) != 3:
        return None
    start, limit, delta = (tensor.item() for tensor in tensors)
    return TensorDesc("", tensors[0].dtype, (max(0, math.ceil((limit - start) / delta)),))


def _element_wise(node: Node, inputs: list[TensorDesc]) -> TensorDesc | None:
    if not inputs:
        return None
    try:
        shape = torch.broadcast_shapes(*(desc.shape or () for desc in inputs))
    except RuntimeError:
        return None
    dtype = GE_DTYPES.get(node.attrs.get("dst_type", -1)) if node.type == "Cast" else inputs[0].dtype
    return None if dtype is None else TensorDesc("", dtype, tuple(shape))
