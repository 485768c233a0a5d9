"""Note in a GE graph which FX node, layer and model attribute each node comes from, and read that again.

Attributes that begin with an underscore do not reach a kernel: torchair keeps its own notes in such ones. Ours:
_model_node is the FX node as the dumps of the passes name it, _model_layer the module of the plain definition,
_model_value (of inputs) what the tensor is, _model_attributes what of the model must survive and is carried here.
NetOutput has _model_soc, the chip that the graph was lowered for, and _model_lowered, whether over the stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, Node
from graph_gemma.graph_model.ascend.ops import BY_GE_TYPE
from graph_gemma.graph_model.ascend.ops.attention import BAND
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.attributes import find_attributes
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS

_INPUTS = ("Data", "RefData")


@dataclass(frozen=True)
class Origin:
    """Where a node comes from; "" where it is not noted."""

    fx_node: str  # "" for what has none, such as constants
    layer: str  # module of the plain definition
    value: str  # of an input: what the tensor is
    attributes: tuple[str, ...]  # names of the model's attributes carried here


@dataclass(frozen=True)
class Target:
    """What a graph was lowered for, and on what; "" where that is not known."""

    soc: str  # the chip's name in settings
    lowered: str  # the stand-in's banner, or that it was on the device


@dataclass(frozen=True)
class Carrier:
    """A node that carries an attribute of the model."""

    attribute: str
    node: Node
    how: str  # the GE attribute and its value, or what stands for it


def origin_of(node: Node) -> Origin:
    """What `annotate` noted of a node; empty in graphs that were lowered elsewhere."""
    attributes = node.attrs.get("_model_attributes", "")
    return Origin(
        node.attrs.get("_model_node", ""),
        node.attrs.get("_model_layer", ""),
        node.attrs.get("_model_value", ""),
        tuple(attributes.split(",")) if attributes else (),
    )


def note_target(proto: Any, target: Target) -> None:
    """Say in a ge.proto.GraphDef what it was lowered for, and on what."""
    for op in proto.op:
        if op.type == "NetOutput":
            op.attr["_model_soc"].s = target.soc.encode()
            op.attr["_model_lowered"].s = target.lowered.encode()


def target_of(graph: GeGraph) -> Target:
    """What `note_target` noted; empty in graphs that were lowered elsewhere."""
    attrs = graph.net_output().attrs
    return Target(attrs.get("_model_soc", ""), attrs.get("_model_lowered", ""))


def find_carriers(graph: GeGraph) -> list[Carrier]:
    """The nodes that carry the model's scales, offsets and bases, with the values that stand in the GE graph."""
    found = []
    for node in graph.nodes:
        for attribute in origin_of(node).attributes:
            how = _carried(attribute, node)
            if how is not None:
                found.append(Carrier(attribute, node, how))
    return found


def annotate(proto: Any, module: fx.GraphModule, graph: ModelGraph, input_order: Sequence[int]) -> None:
    """Note in a ge.proto.GraphDef where its nodes come from.

    module: the FX graph that torchair lowered; its nodes say in ``meta["custom"]`` which node of `graph` they are of.
    input_order: the place among `graph`'s placeholders of each input, by the input's index.
    """
    carried: dict[str, list[str]] = {}
    for attribute, nodes in find_attributes(graph).items():
        for node in nodes:
            carried.setdefault(node.name, []).append(attribute)
    customs = {node.name: node.meta.get("custom") for node in module.graph.nodes}
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    consumers: dict[str, dict[str, str]] = {}
    # A converter makes several GE nodes of one FX node and names the last: those before it belong to their reader.
    for op in reversed(proto.op):
        if op.type in _INPUTS:
            placeholder = placeholders[input_order[op.attr["index"].i]]
            origin = {"origin": placeholder.name, "value": describe_placeholder(placeholder)}
        else:
            origin = customs.get(_fx_name(op)) or consumers.get(op.name) or {}
        if op.type == "Const" or not origin:
            continue
        for source in op.input:
            consumers[source.rpartition(":")[0]] = origin
        notes = {
            "_model_node": origin["origin"],
            "_model_layer": origin.get("layer", ""),
            "_model_value": origin.get("value", ""),
            "_model_attributes": ",".join(carried.get(origin["origin"], [])),
        }
        for key, note in notes.items():
            if note:
                op.attr[key].s = note.encode()


def describe_placeholder(node: fx.Node) -> str:
    """What a placeholder of a ModelGraph is: its kind and, for weights, the expression over checkpoint tensors."""
    kind = str(node.meta["kind"])
    return f"{kind} {node.meta['expression']}" if "expression" in node.meta else kind


def _fx_name(op: Any) -> str:
    named = [desc.attr["_fx_tensor_name"].s.decode() for desc in op.output_desc if "_fx_tensor_name" in desc.attr]
    return str(named[0].partition("-")[0]) if named else ""


def _carried(attribute: str, node: Node) -> str | None:
    """How a node carries an attribute; None if it merely comes from the same FX node as the one that does."""
    if node.type in _INPUTS:
        return origin_of(node).value.partition(" ")[2]
    ours = BY_GE_TYPE.get(node.type)
    if attribute == "window":
        return _window(node)
    if ours is not None and attribute in ours.computes:
        return ours.computes[attribute]
    if ours is not None:
        name = ours.carries.get(attribute, ("", ""))[1]
    else:
        name = "value" if attribute.endswith(("_scale", "_softcap")) else ""  # of a product with a number: Muls
    defaults = OPS[node.type].defaults if node.type in OPS else {}
    if name in node.attrs or defaults.get(name) is not None:
        return f"{name}={node.attrs.get(name, defaults.get(name)):.7g}"
    return None


def _window(node: Node) -> str | None:
    """How a node ends what a query sees; None: it does not."""
    if node.attrs.get("sparse_mode") == BAND:
        return f"pre_tokens={node.attrs['pre_tokens']}"
    masks = [edge.name for edge in node.inputs if edge.name in ("atten_mask", "mask")]
    return masks[0] if masks else None
