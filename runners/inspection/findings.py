"""Figures of one lowered graph: operations by type and layer, inputs, outputs, memory, cost, attributes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from graph_gemma.graph_model.ascend.ge_graph import FREE, GeGraph, Node, TensorDesc, TensorKey, byte_count
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.backends.ascend.liveness import MemoryProfile, profile_memory
from graph_gemma.runners.backends.ascend.printer import count_nodes, writers
from graph_gemma.runners.backends.ascend.provenance import Carrier, find_carriers, origin_of
from graph_gemma.runners.backends.ascend.roofline import CostEstimate, NodeCost, estimate
from graph_gemma.runners.backends.ascend.tensors import tensor_descs
from graph_gemma.runners.inspection.source import Dump

_DECODER_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")
OUTSIDE = "outside the layers"


@dataclass(frozen=True)
class InputGroup:
    """Inputs alike."""

    count: int
    kind: str  # weight, cache, input, or "" in dumps made elsewhere
    desc: TensorDesc
    bytes: int  # of all of them
    writers: tuple[str, ...]  # op types that write them by reference
    example: str  # the first one's name, or what it is


@dataclass(frozen=True)
class Findings:
    """Everything that is shown about a lowered graph."""

    dump: Dump
    types: dict[str, int]  # nodes of each op type
    unknown: dict[str, int]  # the same of types that the interpreter does not know: what they write is not known either
    # Kernels by type, by heading: a run of equal decoder layers is one column, with the counts of one of them.
    columns: dict[str, Counter[str]]
    layer_of: dict[str, int | None]  # decoder layer of each node; None: outside
    inputs: list[InputGroup]
    outputs: list[str]
    constants: list[tuple[str, int]]  # name with dtype and shape, and bytes; the largest first
    carriers: list[Carrier]  # nodes with attributes of the model
    memory: MemoryProfile
    cost: CostEstimate
    kernels: int
    host_inputs: int
    weight_copies: int

    @property
    def graph(self) -> GeGraph:
        return self.dump.graph


def find(dump: Dump, context_length: int | None) -> Findings:
    """Everything that is shown about a graph. context_length: as in `roofline.estimate`."""
    graph = dump.graph
    counts = count_nodes(graph)
    layers = {node.name: decoder_layer(origin_of(node).layer) for node in graph.nodes}
    descs = tensor_descs(graph)
    output = graph.net_output()
    constants = [
        (f"{node.name} {desc}", byte_count(desc))
        for node in graph.nodes
        if node.type == "Const" and (desc := descs.get((node.name, 0))) is not None
    ]
    return Findings(
        dump=dump,
        types=counts.by_type,
        unknown={name: count for name, count in counts.by_type.items() if name not in OPS},
        columns=_columns(graph, layers),
        layer_of=layers,
        inputs=_inputs(graph, descs),
        outputs=[
            f"{edge.producer}:{edge.index} {descs.get((edge.producer, edge.index), '?')}" for edge in output.inputs
        ],
        constants=sorted(constants, key=lambda item: -item[1]),
        carriers=find_carriers(graph),
        memory=profile_memory(graph),
        cost=estimate(graph, dump.soc, context_length),
        kernels=counts.compute,
        host_inputs=counts.host_inputs,
        weight_copies=counts.weight_copies,
    )


def decoder_layer(layer: str) -> int | None:
    """The number of the decoder layer that a module's name belongs to."""
    match = _DECODER_LAYER.search(layer)
    return int(match[1]) if match else None


def slowest(cost: CostEstimate, count: int) -> list[NodeCost]:
    """The nodes that take longest."""
    return sorted((node for node in cost.nodes if node.seconds), key=lambda node: -node.seconds)[:count]


def is_kernel(node: Node) -> bool:
    return node.type not in FREE


def _columns(graph: GeGraph, layers: dict[str, int | None]) -> dict[str, Counter[str]]:
    """Kernels by op type of each run of equal decoder layers, and of what is outside them."""
    by_layer: dict[int | None, Counter[str]] = {None: Counter()}
    for node in graph.nodes:
        if is_kernel(node):
            by_layer.setdefault(layers[node.name], Counter())[node.type] += 1
    runs: list[tuple[int, int, Counter[str]]] = []
    for number in sorted(number for number in by_layer if number is not None):
        if runs and runs[-1][2] == by_layer[number] and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number, runs[-1][2])
        else:
            runs.append((number, number, by_layer[number]))
    columns = {
        f"layer {first}" if first == last else f"each of layers {first}-{last}": counts for first, last, counts in runs
    }
    return {**columns, OUTSIDE: by_layer[None]} if columns else {}


def _inputs(graph: GeGraph, descs: dict[TensorKey, TensorDesc]) -> list[InputGroup]:
    written_by = writers(graph)
    groups: dict[tuple[str, str, tuple[str, ...], str], list[Node]] = {}
    for node in graph.inputs():
        kind = origin_of(node).value.partition(" ")[0]
        alone = origin_of(node).fx_node if kind == "input" else ""  # a step's inputs differ in meaning
        key = (kind, str(node.outputs[0]), tuple(sorted(written_by.get(node.name, ()))), alone)
        groups.setdefault(key, []).append(node)
    return [
        InputGroup(
            len(nodes),
            kind,
            nodes[0].outputs[0],
            len(nodes) * byte_count(nodes[0].outputs[0]) if (nodes[0].name, 0) in descs else 0,
            written,
            origin_of(nodes[0]).value.partition(" ")[2] or origin_of(nodes[0]).fx_node or nodes[0].name,
        )
        for (kind, _, written, _), nodes in groups.items()
    ]
