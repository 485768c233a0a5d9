"""Print a GE graph as readable, deterministic text, and count its nodes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import FREE, STRUCTURE, VIEWS, Edge, GeGraph, Node, iter_edges
from graph_gemma.runners.backends.ascend.interpreter import ops as _ops  # noqa: F401  (fills the registry)
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.backends.ascend.provenance import origin_of

COPIES = ("TensorMove", "Assign", "Transpose", "Cast")


@dataclass(frozen=True)
class GraphCounts:
    """Numbers of nodes."""

    by_type: dict[str, int]  # of each op type, without inputs, constants and the output
    compute: int  # kernels, so no views
    copies: dict[str, int]  # of each type of COPIES
    inputs: int
    constants: int
    host_inputs: int  # inputs placed on the CPU
    # Transpose or Cast of a weight, or of a view of one. Where a graph does not say which inputs are weights: of a
    # matrix, not of indices, that nothing writes.
    weight_copies: int


def count_nodes(graph: GeGraph) -> GraphCounts:
    types = Counter(node.type for node in graph.nodes)
    nodes = graph.by_name()
    written = writers(graph)
    weight_copies = 0
    for node in graph.nodes:
        if node.type in ("Transpose", "Cast"):
            source = _viewed(node, nodes)
            weight_copies += source.type == "Data" and source.name not in written and _may_be_weight(source)
    placements = graph.attrs.get("_input_placements") or []
    return GraphCounts(
        by_type={name: types[name] for name in sorted(types) if name not in STRUCTURE},
        compute=sum(count for name, count in types.items() if name not in FREE),
        copies={name: types[name] for name in COPIES},
        inputs=types["Data"] + types["RefData"],
        constants=types["Const"],
        host_inputs=sum(placement == 0 for placement in placements),
        weight_copies=weight_copies,
    )


def _viewed(node: Node, nodes: dict[str, Node]) -> Node:
    """The node whose result `node` reads, directly or through views."""
    source = nodes[next(iter_edges(node))[0]]
    return _viewed(source, nodes) if source.type in VIEWS else source


def _may_be_weight(data: Node) -> bool:
    known = origin_of(data).value
    if known:
        return known.partition(" ")[0] == "weight"
    desc = data.outputs[0]
    return len(desc.shape or ()) > 1 and desc.dtype not in (torch.int64, torch.int32, torch.bool)


def list_graph(graph: GeGraph) -> str:
    """The graph as text: one line per node in the protobuf's order, after a summary.

    ``%name = Type(input=%producer, ...) {attributes} -> dtype[shape] # FX node (its op) in layer``. ``&`` marks an
    input that the node writes by reference; an index is given to producers of several outputs; constants stand in the
    place of their use; attributes equal to the op's default are left out. Names are as torchair gave them, so that the
    text is comparable with its own dumps.
    """
    nodes = graph.by_name()
    counts = count_nodes(graph)
    lines = [
        f"graph: {counts.inputs} inputs ({counts.host_inputs} on the host), {counts.constants} constants, "
        f"{counts.compute} compute nodes, {counts.weight_copies} copies of weights",
        "ops: " + ", ".join(f"{name} {count}" for name, count in counts.by_type.items()),
    ]
    lines += [_line(node, nodes) for node in graph.nodes if node.type != "Const"]
    return "\n".join(lines) + "\n"


def _line(node: Node, nodes: dict[str, Node]) -> str:
    written = written_inputs(node.type)
    present = [edge for edge in node.inputs if edge.producer]
    inputs = ", ".join(f"{'&' if edge.name in written else ''}{edge.name}={_source(edge, nodes)}" for edge in present)
    attrs = {key: value for key, value in sorted(node.attrs.items()) if _is_telling(node.type, key, value)}
    shown = f" {{{', '.join(f'{key}={_value(value)}' for key, value in attrs.items())}}}" if attrs else ""
    after = f" after {', '.join('%' + name for name in node.controls)}" if node.controls else ""
    outputs = " -> " + ", ".join(map(str, node.outputs)) if node.outputs else ""
    comment = _comment(node)
    return f"%{node.name} = {node.type}({inputs}){shown}{after}{outputs}{comment}"


def _comment(node: Node) -> str:
    """Where the node comes from: the FX node, its op and its layer; of an input, what it is."""
    origin = origin_of(node)
    named = next((desc.fx_name for desc in node.outputs if desc.fx_name), None)
    text = fx_node(named) if named else origin.fx_node
    if named and origin.fx_node:
        text = origin.fx_node + text[text.index(" ") :]
    if origin.layer:
        text += f" in {origin.layer}"
    if origin.value:
        text += f": {origin.value}"
    return f"  # {text}" if text else ""


def _is_telling(op_type: str, name: str, value: object) -> bool:
    """Whether the text shows an attribute: not torchair's own, and not the op's default."""
    if name.startswith("_"):
        return False
    spec = OPS.get(op_type)
    if spec is None:
        return True
    return bool(value) if name in spec.ignored else name not in spec.defaults or value != spec.defaults[name]


def writers(graph: GeGraph) -> dict[str, set[str]]:
    """The types of the nodes that write a tensor by reference, by the name of its producer."""
    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        written = written_inputs(node.type)
        for edge in node.inputs:
            if edge.name in written:
                found.setdefault(edge.producer, set()).add(node.type)
    return found


def is_collective(op_type: str) -> bool:
    """Whether nodes of this type communicate with other ranks."""
    return op_type.startswith("Hcom") or op_type == "MatmulAllReduce"


def written_inputs(op_type: str) -> tuple[str, ...]:
    """The inputs that nodes of this type write by reference."""
    return tuple(OPS[op_type].by_reference.values()) if op_type in OPS else ()


def fx_node(fx_tensor_name: str) -> str:
    """The FX node of torchair's tensor name ``name-target.OUTPUT.i``, as ``name (target)``."""
    name, _, rest = fx_tensor_name.partition("-")
    return f"{name} ({rest.rpartition('.OUTPUT.')[0]})"


def _source(edge: Edge, nodes: dict[str, Node]) -> str:
    producer = nodes[edge.producer]
    if producer.type == "Const":
        return _value(producer.attrs["value"])
    return f"%{edge.producer}" + (f":{edge.index}" if len(producer.outputs) > 1 else "")


def _value(value: object) -> str:
    if isinstance(value, Tensor):
        if value.numel() <= 8:
            items = value.flatten().tolist()
            return _value(items[0] if value.dim() == 0 else items)
        dtype = str(value.dtype).removeprefix("torch.")
        digest = hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:8]
        return f"const {dtype}{list(value.shape)}#{digest}"
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return repr(value)
