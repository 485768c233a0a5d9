"""Attributes of the model that must survive every pass, and the nodes that carry them.

A scale that a rewrite drops or changes gives fluent nonsense, so each attribute of the config is followed to the nodes
that carry it; one that is carried too seldom is an error.
"""

from __future__ import annotations

import torch
from torch import fx

from graph_model import ops
from graph_model.config import GemmaConfig
from graph_model.gemma import round_to_dtype
from graph_model.graph import ModelGraph
from graph_model.weights import InverseFrequencies, OnePlus, Rounded
from passes.framework.contract import PassError

aten = torch.ops.aten

# Attention kernels of Ascend chips, with the keyword that holds the softmax scale; norms whose last argument is eps.
_FUSED_ATTENTION = {
    "air::npu_fused_infer_attention_score": "scale",
    "ascend::incre_flash_attention": "scale",
    "npu::npu_prompt_flash_attention": "scale_value",
}
_NORMS = (ops.rms_norm, ops.add_rms_norm, ops.rms_norm_quantize, ops.add_rms_norm_quantize)
_FUSED_NORMS = ("ascend::gemma_rms_norm", "npu::npu_rms_norm", "npu::npu_add_rms_norm")


def find_attributes(graph: ModelGraph) -> dict[str, list[str]]:
    """Names of the nodes that carry each attribute with the value that the config gives it."""
    config = graph.config
    nodes = list(graph.graph.nodes)
    return {
        "embedding_scale": [n.name for n in nodes if _scales_embedding(n, graph)],
        "rope_theta": [n.name for n in nodes if _holds_theta(n, config)],
        "softmax_scale": [n.name for n in nodes if _softmax_scale(n) == config.softmax_scale],
        "norm_eps": [n.name for n in nodes if _norm_eps(n, graph) == config.rms_norm_eps],
        "norm_offset": [n.name for n in nodes if _adds_norm_offset(n, graph)],
    }


def check_attributes(graph: ModelGraph, after: str) -> None:
    """Raise PassError if an attribute is lost; `after` names the pass that ran last."""
    layers = graph.config.num_hidden_layers
    expected = {
        "embedding_scale": 1,
        "rope_theta": 1,
        "softmax_scale": layers,
        "norm_eps": 2 * layers + 1,
        "norm_offset": 2 * layers + 1,
    }
    for attribute, carriers in find_attributes(graph).items():
        if len(carriers) != expected[attribute]:
            raise PassError(
                f"after {after}: {attribute} = {attribute_value(graph, attribute)} is carried by {len(carriers)} "
                f"nodes ({', '.join(carriers) or 'none'}), expected {expected[attribute]}: the rewrite lost or "
                "changed it"
            )


def attribute_value(graph: ModelGraph, attribute: str) -> float:
    """The value that the config gives an attribute."""
    config = graph.config
    return {
        "embedding_scale": round_to_dtype(config.embedding_scale, graph.dtype),
        "rope_theta": config.rope_theta,
        "softmax_scale": config.softmax_scale,
        "norm_eps": config.rms_norm_eps,
        "norm_offset": 1.0,
    }[attribute]


def _scales_embedding(node: fx.Node, graph: ModelGraph) -> bool:
    scale = attribute_value(graph, "embedding_scale")
    if node.target != aten.mul.Tensor or node.args[1] != scale:
        return False
    source = node.args[0]
    if _calls(source, ops.all_reduce):
        return _calls(source.args[0], ops.sharded_embedding)  # type: ignore[union-attr]
    return _calls(source, aten.embedding.default)


def _holds_theta(node: fx.Node, config: GemmaConfig) -> bool:
    if node.target == aten.pow.Scalar:
        return bool(node.args[0] == config.rope_theta)
    expression = node.meta.get("expression")
    return expression == InverseFrequencies(config.rope_theta, config.head_dim)


def _softmax_scale(node: fx.Node) -> object:
    if node.target == aten.scaled_dot_product_attention.default or _op(node) in _FUSED_ATTENTION:
        return node.kwargs.get(_FUSED_ATTENTION.get(_op(node), "scale"))
    if node.target == aten.mul.Tensor and node.meta.get("attribute") == "softmax_scale":
        return node.args[1]
    return node.args[-1] if node.target in (ops.paged_attention, ops.paged_attention_int8) else None


def _norm_eps(node: fx.Node, graph: ModelGraph) -> object:
    if _op(node) in ("npu::npu_add_rms_norm_quant", "npu::npu_add_rms_norm_dynamic_quant"):
        return node.kwargs["epsilon"]
    if node.target in _NORMS or _op(node) in _FUSED_NORMS:
        return node.args[-1]
    if node.target == aten.rsqrt.default and _calls(node.args[0], aten.add.Tensor):
        return node.args[0].args[1]  # type: ignore[union-attr]
    return None


def _adds_norm_offset(node: fx.Node, graph: ModelGraph) -> bool:
    if isinstance(node.meta.get("expression"), OnePlus | Rounded) or _op(node) == "ascend::gemma_rms_norm":
        return True
    return node.target == aten.add.Tensor and bool(node.args[1] == 1.0)


def _op(node: fx.Node) -> str:
    """Namespace and name of the op that a node calls; chips' ops are known by it, as they need not be loaded."""
    return str(node.target.name()) if isinstance(node.target, torch._ops.OpOverload) else ""


def _calls(value: object, target: object) -> bool:
    return isinstance(value, fx.Node) and value.target == target
