"""Attributes of the model that must survive every pass, and the nodes that carry them.

A scale that a rewrite drops or changes gives fluent nonsense, so each attribute of the model is followed to the nodes
that carry it; one that is carried too seldom is an error.
"""

from __future__ import annotations

import torch
from torch import fx

from graph_model import ops
from graph_model.ascend.ops import BY_TORCH_NAME, AscendOp
from graph_model.families import Family
from graph_model.families.layer import Rotary
from graph_model.graph import ModelGraph
from graph_model.weights import InverseFrequencies, OnePlus, Rounded
from passes.framework.contract import PassError

aten = torch.ops.aten

_NORMS = (ops.rms_norm, ops.add_rms_norm, ops.rms_norm_quantize, ops.add_rms_norm_quantize)


def find_attributes(graph: ModelGraph) -> dict[str, list[str]]:
    """Names of the nodes that carry each attribute with the value that the family gives it."""
    nodes = list(graph.graph.nodes)
    values = {name: attribute.values for name, attribute in graph.family.attributes(graph.dtype).items()}
    found = {
        "embedding_scale": [n.name for n in nodes if _embedding_scale(n) in values["embedding_scale"]],
        "rope_theta": [n.name for n in nodes if _holds_rotary_base(n, graph.family)],
        "softmax_scale": [n.name for n in nodes if _has_softmax_scale(n, graph.family)],
        "norm_eps": [n.name for n in nodes if _norm_eps(n) in values["norm_eps"]],
        "norm_offset": [n.name for n in nodes if _adds_norm_offset(n)],
        "window": [n.name for n in nodes if _has_window(n, graph.family)],
        "attention_softcap": [n.name for n in nodes if _has_softcap(n, graph.family)],
        "rope_factor": [n.name for n in nodes if _holds_rope_factor(n, graph.family)],
        "logit_softcap": [n.name for n in nodes if _logit_softcap(n, graph.family) in values.get("logit_softcap", ())],
    }
    return {name: found[name] for name in values}


def check_attributes(graph: ModelGraph, after: str) -> None:
    """Raise PassError if an attribute is lost; `after` names the pass that ran last."""
    expected = graph.family.attributes(graph.dtype)
    for name, carriers in find_attributes(graph).items():
        if len(carriers) != expected[name].carriers:
            values = " or ".join(map(str, expected[name].values))
            raise PassError(
                f"after {after}: {name} = {values} is carried by {len(carriers)} nodes "
                f"({', '.join(carriers) or 'none'}), expected {expected[name].carriers}: the rewrite lost or changed it"
            )


def _embedding_scale(node: fx.Node) -> object:
    if node.target != aten.mul.Tensor:
        return None
    source = node.args[0]
    if _calls(source, ops.all_reduce):
        looked_up = _calls(source.args[0], ops.sharded_embedding)  # type: ignore[union-attr]
    else:
        looked_up = _calls(source, aten.embedding.default)
    return node.args[1] if looked_up else None


def _holds_rotary_base(node: fx.Node, family: Family) -> bool:
    tables = {layer.attention.rotary for layer in family.layers}
    if node.target == aten.pow.Scalar:
        return node.args[0] in {rotary.base for rotary in tables}
    return node.meta.get("expression") in _frequencies(tables)


def _holds_rope_factor(node: fx.Node, family: Family) -> bool:
    scaled = {layer.attention.rotary for layer in family.layers if layer.attention.rotary.factor != 1.0}
    if node.target == aten.div.Tensor and _calls(node.args[0], aten.reciprocal.default):
        return node.args[1] in {rotary.factor for rotary in scaled}
    return node.meta.get("expression") in _frequencies(scaled)


def _frequencies(tables: set[Rotary]) -> list[InverseFrequencies]:
    return [InverseFrequencies(rotary.base, rotary.size, rotary.factor) for rotary in tables]


def _has_softmax_scale(node: fx.Node, family: Family) -> bool:
    """Whether the node scales attention's scores, by what its layer asks for."""
    scale = _softmax_scale(node)
    index = family.layer_index(node.meta["layer"]) if scale is not None else None
    return index is not None and scale == family.layers[index].attention.softmax_scale


def _softmax_scale(node: fx.Node) -> object:
    if node.target == aten.scaled_dot_product_attention.default:
        return node.kwargs.get("scale")
    if node.target == aten.mul.Tensor and node.meta.get("attribute") == "softmax_scale":
        return node.args[1]
    if node.target == aten.mul.Tensor and _calls(node.args[0], aten.matmul.default):
        return node.args[1]
    if node.target in (ops.paged_attention, ops.paged_attention_int8):
        return node.args[-1]
    return _argument_of_kernel(node, "softmax_scale")


def _has_window(node: fx.Node, family: Family) -> bool:
    """Whether the node ends what a query sees where its layer's window ends."""
    index = family.layer_index(node.meta.get("layer", ""))
    window = None if index is None else family.layers[index].attention.window
    if node.target in (ops.paged_attention, ops.paged_attention_int8):
        return window is not None and bool(node.kwargs.get("window") == window)
    begins = node.target == aten.sub.Tensor and any(user.target == aten.gt.Tensor for user in node.users)
    return window is not None and begins and bool(node.args[1] == window)


def _has_softcap(node: fx.Node, family: Family) -> bool:
    """Whether the node bounds attention's scores, as its layer asks for."""
    index = family.layer_index(node.meta.get("layer", ""))
    cap = None if index is None else family.layers[index].attention.softcap
    if node.target in (ops.paged_attention, ops.paged_attention_int8):
        return cap is not None and bool(node.kwargs.get("softcap") == cap)
    return cap is not None and _softcap(node) == cap


def _logit_softcap(node: fx.Node, family: Family) -> object:
    return None if family.layer_index(node.meta.get("layer", "")) is not None else _softcap(node)


def _softcap(node: fx.Node) -> object:
    """The cap of cap * tanh(x / cap), where the node is its last one."""
    if node.target == ops.softcap:
        return node.args[1]
    if node.target != aten.mul.Tensor or not _calls(node.args[0], aten.tanh.default):
        return None
    scaled = node.args[0].args[0]  # type: ignore[union-attr]
    return node.args[1] if _calls(scaled, aten.div.Tensor) and scaled.args[1] == node.args[1] else None  # type: ignore[union-attr]


def _norm_eps(node: fx.Node) -> object:
    if node.target in _NORMS:
        return node.args[-1]
    if node.target == aten.rsqrt.default and _calls(node.args[0], aten.add.Tensor):
        return node.args[0].args[1]  # type: ignore[union-attr]
    return _argument_of_kernel(node, "norm_eps")


def _adds_norm_offset(node: fx.Node) -> bool:
    kernel = _kernel(node)
    if isinstance(node.meta.get("expression"), OnePlus | Rounded) or (kernel and "norm_offset" in kernel.computes):
        return True
    return node.target == aten.add.Tensor and bool(node.args[1] == 1.0)


def _kernel(node: fx.Node) -> AscendOp | None:
    """The op of an Ascend chip that a node calls; known by its name, as torch_npu need not be loaded."""
    return BY_TORCH_NAME.get(node.target.name()) if isinstance(node.target, torch._ops.OpOverload) else None


def _argument_of_kernel(node: fx.Node, attribute: str) -> object:
    """The argument by which a chip's op carries an attribute; None if the node calls none that does."""
    kernel = _kernel(node)
    if kernel is None or attribute not in kernel.carries:
        return None
    names = (argument.name for argument in node.target._schema.arguments)  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(kernel.carries[attribute][0])


def _calls(value: object, target: object) -> bool:
    return isinstance(value, fx.Node) and value.target == target
