"""Execution order of a GE graph, and the check that its edges order by-reference writes and their readers."""

from __future__ import annotations

import heapq

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, GeGraphError, Node, iter_edges

# Ops that return their input's memory under another shape.
VIEW_OPS = frozenset({"Reshape", "ExpandDims", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Bitcast"})


def execution_order(graph: GeGraph) -> list[Node]:
    """A topological order by data and control edges; the protobuf's own order wherever edges leave a choice."""
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    waiting = []
    readers: dict[str, list[int]] = {name: [] for name in position}
    for index, node in enumerate(graph.nodes):
        before = {producer for producer, _ in iter_edges(node)} | set(node.controls)
        unknown = before - position.keys()
        if unknown:
            raise GeGraphError(f"{node.type} {node.name} reads {', '.join(sorted(unknown))}, which is not in the graph")
        waiting.append(len(before))
        for name in before:
            readers[name].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(graph.nodes[index])
        for reader in readers[graph.nodes[index].name]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(graph.nodes):
        raise GeGraphError(f"graph {graph.name} has a cycle")
    return order


def check_hazards(graph: GeGraph, by_reference: dict[str, dict[int, str]]) -> None:
    """Raise GeGraphError where the graph leaves a by-reference write undefined.

    A node may write a Data node itself, the output of a node that owns its memory (TensorMove), or what another
    by-reference node returned. Written through a view of a Data node, or into a constant, the result is the engine's
    choice. Every other reader of the written memory must be ordered before or after the write by edges.
    """
    nodes = graph.by_name()
    before = _ancestors(graph)
    bit = {node.name: 1 << index for index, node in enumerate(graph.nodes)}
    aliases: dict[tuple[str, int], tuple[str, int]] = {}
    for node in execution_order(graph):
        for index, name in by_reference.get(node.name, {}).items():
            source = next((edge for edge in node.inputs if edge.name == name and edge.producer), None)
            if source is None:
                continue
            origin = _written_memory(node, (source.producer, source.index), nodes, aliases)
            aliases[node.name, index] = origin
            for other in graph.nodes:
                if other.name == node.name or other.type == "NetOutput" or origin not in iter_edges(other):
                    continue
                if not (before[node.name] & bit[other.name] or before[other.name] & bit[node.name]):
                    raise GeGraphError(
                        f"{node.type} {node.name} writes {origin[0]}, which {other.type} {other.name} reads: no edge "
                        "says which comes first"
                    )


def _written_memory(
    node: Node, source: tuple[str, int], nodes: dict[str, Node], aliases: dict[tuple[str, int], tuple[str, int]]
) -> tuple[str, int]:
    origin = aliases.get(source, source)
    through = origin
    while nodes[through[0]].type in VIEW_OPS:
        through = next(iter_edges(nodes[through[0]]))
        through = aliases.get(through, through)
    owner = nodes[through[0]]
    if owner.type in ("Const", "ConstPlaceHolder"):
        raise GeGraphError(f"{node.type} {node.name} writes the constant {owner.name} by reference")
    if through != origin and owner.type in ("Data", "RefData"):
        raise GeGraphError(
            f"{node.type} {node.name} writes input {owner.name} through {nodes[origin[0]].type} {origin[0]}: whether "
            "the engine copies there is not defined; give the op the input itself"
        )
    return origin


def _ancestors(graph: GeGraph) -> dict[str, int]:
    """Every node's predecessors, as a set of bits by the node's position."""
    bit = {node.name: 1 << index for index, node in enumerate(graph.nodes)}
    result: dict[str, int] = {}
    for node in execution_order(graph):
        mine = 0
        for name in {producer for producer, _ in iter_edges(node)} | set(node.controls):
            mine |= result[name] | bit[name]
        result[node.name] = mine
    return result
