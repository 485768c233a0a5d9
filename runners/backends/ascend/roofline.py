"""Roofline estimate of a GE graph: the time that a chip's peak rates allow for what its nodes move and compute.

It is an estimate, and a lower bound: a node takes as long as the slowest of what it moves, multiplies, computes on
vectors and sends, each at the chip's peak; nodes run one after another; launches, synchronization, hits in the L2
cache and the formats and fusions that GE chooses are not in it.

Sources: the rates are those of the chip (graph_model/chips). The vector rate is vector cores x 64 fp32 lanes (2048
bits, Hot Chips 2019) x clock; 16-bit vector kernels compute in fp32, so all vector work is counted at that rate. fp32
matrix products are counted at a quarter of the fp16 rate (910B data sheets).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from graph_gemma.graph_model.ascend.ge_graph import VIEWS, GeGraph, byte_count
from graph_gemma.graph_model.ascend.traffic import work_of
from graph_gemma.graph_model.ascend.work import Operands, Uncountable, Work
from graph_gemma.graph_model.chips.chip import Chip, Rates
from graph_gemma.runners.backends.ascend.printer import writers, written_inputs
from graph_gemma.runners.backends.ascend.tensors import tensor_descs

_FP32_LANES = 64
_FP32_MATRIX_SHARE = 0.25


@dataclass(frozen=True)
class NodeCost:
    """Estimate for one node."""

    name: str
    type: str
    work: Work
    times: dict[str, float]  # seconds by what takes them: memory, matrix, vector, link

    @property
    def seconds(self) -> float:
        """The longest of `times`."""
        return max(self.times.values())

    @property
    def bound(self) -> str:
        """What the node takes its time for; "free" where it takes none."""
        return max(self.times, key=self.times.__getitem__) if self.seconds else "free"


@dataclass(frozen=True)
class Totals:
    """Sums over nodes."""

    nodes: int
    bytes: int  # read and written
    matrix_ops: int  # operations, a multiply-add is two
    vector_ops: int
    seconds: float


@dataclass(frozen=True)
class CostEstimate:
    """Estimate for a graph."""

    soc: Chip
    nodes: list[NodeCost]  # in the graph's order
    uncounted: dict[str, str]  # by node: why its cost, or its time on the link, is not in the sums

    @property
    def total_s(self) -> float:
        return math.fsum(node.seconds for node in self.nodes)

    @property
    def total(self) -> Totals:
        return _sum(self.nodes)

    def by(self, key: Callable[[NodeCost], str]) -> dict[str, Totals]:
        """Sums over the nodes of equal `key`, the slowest first: ``by(lambda node: node.type)``."""
        groups: dict[str, list[NodeCost]] = {}
        for node in self.nodes:
            groups.setdefault(key(node), []).append(node)
        sums = {name: _sum(nodes) for name, nodes in groups.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def estimate(graph: GeGraph, soc: Chip, context_length: int | None = None) -> CostEstimate:
    """What each node of `graph` costs on one chip of `soc`.

    context_length: tokens that each row's attention sees, this step's included; None: as many as its block table or
    its keys hold, the most that the graph is made for.
    """
    descs = tensor_descs(graph)
    nodes, uncounted = [], {}
    for node in graph.nodes:
        try:
            work = work_of(node, Operands.of(node, descs), context_length)
        except Uncountable as reason:
            uncounted[node.name] = str(reason)
            work = Work()
        if work.link and soc.rates.link is None:
            uncounted[node.name] = f"no link rate is known for the {soc.product}"
        nodes.append(NodeCost(node.name, node.type, work, times(work, soc.rates)))
    return CostEstimate(soc, nodes, uncounted)


def gathered_bytes(graph: GeGraph) -> dict[str, int]:
    """Bytes that each gather of a cache's blocks writes, by the node's name; it reads as many.

    A cache is an input that the graph writes.
    """
    descs, nodes, written = tensor_descs(graph), graph.by_name(), writers(graph)

    def is_cache(name: str) -> bool:
        node = nodes[name]
        passes_on = [edge.producer for edge in node.inputs if edge.name in written_inputs(node.type)]
        if node.type in VIEWS:
            passes_on = [node.inputs[0].producer]
        return name in written or any(map(is_cache, passes_on))

    gathers = (node for node in graph.nodes if node.type in ("GatherV2", "Gather"))
    return {node.name: byte_count(descs[node.name, 0]) for node in gathers if is_cache(node.inputs[0].producer)}


def times(work: Work, rates: Rates) -> dict[str, float]:
    """Seconds that each unit of a chip takes at its peak."""
    tera = rates.int8_tops if work.matrix_dtype is torch.int8 else rates.fp16_tflops
    if work.matrix_dtype is torch.float32:
        tera *= _FP32_MATRIX_SHARE
    vector = rates.vector_cores * _FP32_LANES * rates.clock_mhz * 1e6
    return {
        "memory": (work.read + work.written) / (rates.bandwidth * 1e9),
        "matrix": work.matrix / (tera * 1e12),
        "vector": work.vector / vector,
        "link": work.link / (rates.link * 1e9) if rates.link else 0.0,
    }


def _sum(nodes: list[NodeCost]) -> Totals:
    works = [node.work for node in nodes]
    return Totals(
        len(nodes),
        sum(work.read + work.written for work in works),
        sum(work.matrix for work in works),
        sum(work.vector for work in works),
        math.fsum(node.seconds for node in nodes),
    )
