"""Memory of a GE graph while it runs: liveness of tensors over the order of the nodes, and the peak."""

from __future__ import annotations

from dataclasses import dataclass

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, Node, TensorKey, byte_count, iter_edges
from graph_gemma.runners.backends.ascend.interpreter.hazards import VIEW_OPS, execution_order
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.backends.ascend.tensors import tensor_descs


@dataclass(frozen=True)
class MemoryProfile:
    """Bytes of memory that a graph takes."""

    inputs: int  # of its Data nodes (weights, caches, a step's inputs), which the caller keeps
    constants: int
    order: list[str]  # the nodes as they run
    live: list[int]  # of intermediate tensors and outputs while the node at that place of `order` runs
    at_peak: dict[str, int]  # of the tensors that are live at the peak, by producer, the largest first

    @property
    def peak(self) -> int:
        """Most bytes of intermediate tensors and outputs at any time."""
        return max(self.live, default=0)

    @property
    def peak_node(self) -> str:
        """The first node during which the peak is reached."""
        return self.order[self.live.index(self.peak)] if self.order else ""


def profile_memory(graph: GeGraph) -> MemoryProfile:
    """Liveness of every tensor: from the node that makes it to the last that reads it, or to the end for an output.

    Views and outputs that are inputs written by reference take no memory of their own. Workspaces of kernels, alignment
    and what GE computes in place are not in it, so that a device may need more, or less.
    """
    order = execution_order(graph)
    descs = tensor_descs(graph)
    place = {node.name: index for index, node in enumerate(order)}
    owners = _owners(order)
    sizes: dict[TensorKey, int] = {}
    last: dict[TensorKey, int] = {}
    held = {"inputs": 0, "constants": 0}
    for index, node in enumerate(order):
        for key in iter_edges(node):
            owner = owners.get(key, key)
            last[owner] = len(order) - 1 if node.type == "NetOutput" else max(last.get(owner, 0), index)
        for number in range(len(node.outputs)):
            key = (node.name, number)
            if owners.get(key, key) != key or key not in descs:
                continue
            size = byte_count(descs[key])
            if node.type in ("Data", "RefData", "Const"):
                held["constants" if node.type == "Const" else "inputs"] += size
            else:
                sizes[key] = size
                last.setdefault(key, index)
    changes = [0] * (len(order) + 1)
    for key, size in sizes.items():
        changes[place[key[0]]] += size
        changes[last[key] + 1] -= size
    live, total = [], 0
    for change in changes[:-1]:
        total += change
        live.append(total)
    peak = live.index(max(live)) if live else 0
    at_peak = {
        f"{name}:{number}" if number else name: size
        for (name, number), size in sizes.items()
        if size and place[name] <= peak <= last[name, number]
    }
    return MemoryProfile(
        **held,
        order=[node.name for node in order],
        live=live,
        at_peak=dict(sorted(at_peak.items(), key=lambda item: -item[1])),
    )


def _owners(order: list[Node]) -> dict[TensorKey, TensorKey]:
    """The tensor whose memory a view or an output written by reference is."""
    owners: dict[TensorKey, TensorKey] = {}
    for node in order:
        aliases = dict(OPS[node.type].by_reference) if node.type in OPS else {}
        sources = {edge.name: (edge.producer, edge.index) for edge in node.inputs if edge.producer}
        if node.type in VIEW_OPS and sources:
            aliases = {0: next(iter(sources))}
        for index, name in aliases.items():
            if name in sources:
                source = sources[name]
                owners[node.name, index] = owners.get(source, source)
    return owners
