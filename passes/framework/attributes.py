"""Attributes of the model that must survive every pass, and the nodes that carry them.

A scale that a rewrite drops or changes gives fluent nonsense, so each attribute of the model is followed to the nodes
that carry it; one that is carried too seldom is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TypeGuard

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.ascend.ops import BY_TORCH_NAME, AscendOp
from graph_gemma.graph_model.ascend.ops.attention import BAND
from graph_gemma.graph_model.families import Attention, Family
from graph_gemma.graph_model.families.family import Attribute
from graph_gemma.graph_model.families.layer import Rotary
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import InverseFrequencies, OnePlus, Rounded
from graph_gemma.passes.framework.contract import PassError

aten = torch.ops.aten

_ATTENTIONS = (ops.paged_attention, ops.paged_attention_int8)
# What may stand between the comparison that makes a mask and what takes it.
_OF_MASKS = (aten.logical_or.default, aten.reshape.default, aten.unsqueeze.default, aten.expand.default)
_NORMS = (ops.rms_norm, ops.add_rms_norm, ops.rms_norm_quantize, ops.add_rms_norm_quantize)


def find_attributes(graph: ModelGraph) -> dict[str, list[fx.Node]]:
    """The nodes that carry each attribute with the value that the family gives it."""
    nodes = list(graph.graph.nodes)
    values = {name: attribute.values for name, attribute in expected_attributes(graph).items()}
    family = graph.family
    carries: dict[str, Callable[[fx.Node], bool]] = {
        "embedding_scale": lambda n: embedding_scale(n) in values["embedding_scale"],
        "residual_scale": lambda n: _gain(n) in values["residual_scale"],
        "rope_theta": lambda n: _holds_rotary_base(n, family),
        "softmax_scale": lambda n: _has_softmax_scale(n, family),
        "norm_eps": lambda n: _norm_eps(n) in values["norm_eps"],
        "norm_offset": _adds_norm_offset,
        "window": lambda n: _has_window(n, family),
        "attention_softcap": lambda n: _has_softcap(n, family),
        "rope_factor": lambda n: _holds_rope_factor(n, family),
        "logit_softcap": lambda n: _attention(n, family) is None and _softcap(n) in values["logit_softcap"],
    }
    return {name: [node for node in nodes if carries[name](node)] for name in values}


def expected_attributes(graph: ModelGraph) -> dict[str, Attribute]:
    """What must survive in the graph: the family's attributes, with the scale of the residual stream as it is."""
    expected = dict(graph.family.attributes(graph.dtype))
    if graph.residual_exponent:
        scale = 2.0**-graph.residual_exponent
        norms = graph.family.norms.values()
        others = dict.fromkeys(norm.eps for norm in norms if norm.reads != "stream")
        of_stream = dict.fromkeys(norm.eps * scale * scale for norm in norms if norm.reads == "stream")
        (factor,) = expected["embedding_scale"].values
        expected["embedding_scale"] = Attribute((factor * scale,), 1)
        expected["norm_eps"] = Attribute((*others, *of_stream), expected["norm_eps"].carriers)
        expected["residual_scale"] = Attribute((scale,), sum(norm.reads == "branch" for norm in norms))
    return expected


def check_attributes(graph: ModelGraph, after: str) -> None:
    """Raise PassError if an attribute is lost; `after` names the pass that ran last."""
    expected = expected_attributes(graph)
    for name, carriers in find_attributes(graph).items():
        # One of n nodes that compute parts of the same thing carries an n-th of it.
        parts = sum(Fraction(1, node.meta.get("parts", 1)) for node in carriers)
        if parts != expected[name].carriers:
            values = " or ".join(map(str, expected[name].values))
            names = ", ".join(node.name for node in carriers) or "none"
            raise PassError(
                f"after {after}: {name} = {values} is carried by {len(carriers)} nodes ({names}), expected "
                f"{expected[name].carriers}: the rewrite lost or changed it"
            )


def embedding_scale(node: fx.Node) -> object:
    """The factor on the embeddings, where the node applies it; else None."""
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
    attention = _attention(node, family)
    found: object = None
    if node.target in _ATTENTIONS:
        found = node.kwargs.get("window")
    elif node.target == aten.sub.Tensor and any(user.target == aten.gt.Tensor for user in node.users):
        found = node.args[1]
    elif node.target == aten.masked_fill.Scalar:
        found = _window_of_mask(node.args[1])
    elif (kernel := _kernel(node)) is not None and "softmax_scale" in kernel.carries:
        found = _window_of_kernel(node)
    return attention is not None and found is not None and found == attention.window


def _window_of_kernel(node: fx.Node) -> object:
    """The window of an attention kernel: a band that it does not ignore, or a mask."""
    before = node.kwargs.get("pre_tokens")
    if node.kwargs.get("sparse_mode") == BAND and isinstance(before, int):
        return before + 1
    return _window_of_mask(node.kwargs.get("atten_mask"))


def _window_of_mask(mask: object) -> object:
    """The window W of a mask that hides keys before `query - (W - 1)`; None: it hides none."""
    if not isinstance(mask, fx.Node):
        return None
    if mask.target == aten.lt.Tensor:
        oldest = mask.args[1].args[0] if _calls(mask.args[1], aten.clamp.default) else mask.args[1]
        before = oldest.args[1] if _calls(oldest, aten.sub.Tensor) else None
        return before + 1 if isinstance(before, int) else None
    if mask.target not in _OF_MASKS:
        return None
    found = [_window_of_mask(source) for source in mask.args[:2] if isinstance(source, fx.Node)]
    return next((window for window in found if window is not None), None)


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


def _gain(node: fx.Node) -> object:
    """By how much a norm's factor is scaled."""
    factor = node.meta.get("expression")
    factor = factor.x if isinstance(factor, Rounded) else factor
    return factor.gain if isinstance(factor, OnePlus) else None


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
