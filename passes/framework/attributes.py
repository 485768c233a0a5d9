"""Attributes of the model that must survive every pass, and the nodes that carry them.

A scale that a rewrite drops or changes gives fluent nonsense, so each attribute of the model is followed to the nodes
that carry it; one that is carried too seldom is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import fx

from graph_model import ops
from graph_model.ascend.ops import BY_TORCH_NAME, AscendOp
from graph_model.families import Attention, Family
from graph_model.families.layer import Rotary
from graph_model.graph import ModelGraph
from graph_model.weights import InverseFrequencies, OnePlus, Rounded
from passes.framework.contract import PassError

aten = torch.ops.aten

_ATTENTIONS = (ops.paged_attention, ops.paged_attention_int8)
_NORMS = (ops.rms_norm, ops.add_rms_norm, ops.rms_norm_quantize, ops.add_rms_norm_quantize)


def find_attributes(graph: ModelGraph) -> dict[str, list[str]]:
    """Names of the nodes that carry each attribute with the value that the family gives it."""
    nodes = list(graph.graph.nodes)
    values = {name: attribute.values for name, attribute in graph.family.attributes(graph.dtype).items()}
    family = graph.family
    carries: dict[str, Callable[[fx.Node], bool]] = {
        "embedding_scale": lambda n: _embedding_scale(n) in values["embedding_scale"],
        "rope_theta": lambda n: _holds_rotary_base(n, family),
        "softmax_scale": lambda n: _has_softmax_scale(n, family),
        "norm_eps": lambda n: _norm_eps(n) in values["norm_eps"],
        "norm_offset": _adds_norm_offset,
        "window": lambda n: _has_window(n, family),
        "attention_softcap": lambda n: _has_softcap(n, family),
        "rope_factor": lambda n: _holds_rope_factor(n, family),
        "logit_softcap": lambda n: _attention(n, family) is None and _softcap(n) in values["logit_softcap"],
    }
    return {name: [node.name for node in nodes if carries[name](node)] for name in values}


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
        looked_up = _calls(source.args[0], ops.sharded_embedding)
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
    attention = _attention(node, family) if scale is not None else None
    return attention is not None and scale == attention.softmax_scale


def _attention(node: fx.Node, family: Family) -> Attention | None:
    """How attention of the node's layer is described; None: it is in no layer."""
    index = family.layer_index(node.meta.get("layer", ""))
    return None if index is None else family.layers[index].attention


def _softmax_scale(node: fx.Node) -> object:
    if node.target == aten.scaled_dot_product_attention.default:
        return node.kwargs.get("scale")
    if node.target == aten.mul.Tensor and node.meta.get("attribute") == "softmax_scale":
        return node.args[1]
    if node.target == aten.mul.Tensor and _calls(node.args[0], aten.matmul.default):
        return node.args[1]
    if node.target in _ATTENTIONS:
        return node.args[-1]
    return _argument_of_kernel(node, "softmax_scale")


def _has_window(node: fx.Node, family: Family) -> bool:
    """Whether the node ends what a query sees where its layer's window ends."""
    attention, found = _attention(node, family), None
    if node.target in _ATTENTIONS:
        found = node.kwargs.get("window")
    elif node.target == aten.sub.Tensor and any(user.target == aten.gt.Tensor for user in node.users):
        found = node.args[1]
    return attention is not None and found is not None and found == attention.window


def _has_softcap(node: fx.Node, family: Family) -> bool:
    """Whether the node bounds attention's scores, as its layer asks for."""
    attention = _attention(node, family)
    found = node.kwargs.get("softcap") if node.target in _ATTENTIONS else _softcap(node)
    return attention is not None and found is not None and found == attention.softcap


def _softcap(node: fx.Node) -> object:
    """The cap of cap * tanh(x / cap), where the node is its last one."""
    if node.target == ops.softcap:
        return node.args[1]
    bounded = node.args[0] if node.target == aten.mul.Tensor else None
    scaled = bounded.args[0] if _calls(bounded, aten.tanh.default) else None
    return node.args[1] if _calls(scaled, aten.div.Tensor) and scaled.args[1] == node.args[1] else None


def _norm_eps(node: fx.Node) -> object:
    if node.target in _NORMS:
        return node.args[-1]
    if node.target == aten.rsqrt.default and _calls(node.args[0], aten.add.Tensor):
        return node.args[0].args[1]
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


def _calls(value: object, target: object) -> TypeGuard[fx.Node]:
    return isinstance(value, fx.Node) and value.target == target
