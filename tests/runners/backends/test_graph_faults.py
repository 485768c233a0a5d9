"""Faults planted into lowered graphs, and into how they are served, are noticed, each by the check of a budget.

Faults of what is computed are in test_mutations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ascend_budgets import (
    BESIDES,
    BLOCK,
    BUDGETS,
    HALF,
    MOST_TIMES,
    Phases,
    check_equal_kernels,
    check_gathers,
    check_kernels,
    check_lean,
    check_one_graph_per_bucket,
    check_ratio,
    selected,
    serve_growing_lengths,
)  # fmt: skip
from support.chip_processes import A2, DUO, on_each_chip
from support.peak_memory import PeakMemory

from graph_gemma.graph_model.ascend.ge_graph import Edge, GeGraph, GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.ascend.attention import CAUSAL_MASK_SIZE
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.printer import count_nodes, list_graph, writers
from graph_gemma.runners.backends.ascend.roofline import gathered_bytes

LAYERS = 2
Check = Callable[["Lowered", GeGraph], None]


@dataclass(frozen=True)
class Lowered:
    """A full-size step of few layers. model: what was lowered. graph: the GE graph. gathers: how many it may have."""

    soc: str
    size: str
    model: ModelGraph
    graph: GeGraph
    gathers: int


@cache
def step(soc: str) -> Lowered:
    """On the A2 a later chunk, which gathers blocks; on the DUO decode."""
    if soc == A2:
        config, bucket = replace(GEMMA_2B, num_hidden_layers=LAYERS), Bucket("extend", 1, 64, 4)
    else:
        config, bucket = replace(GEMMA_7B, num_hidden_layers=LAYERS), Bucket("decode", 2, 1, 4)
    model = selected(config, bucket, soc)
    size = "2b" if soc == A2 else "7b"
    return Lowered(soc, size, model, lower(model).graph, 2 * LAYERS if soc == A2 else 0)


def kernels(lowered: Lowered, graph: GeGraph) -> None:
    of_last_token = 6 if lowered.model.bucket.chunk > 1 else 0
    besides = BESIDES[lowered.soc, lowered.size] + lowered.gathers + of_last_token
    check_kernels(count_nodes(graph), LAYERS, BUDGETS[lowered.soc, lowered.size, "exact"], besides)


def legality(lowered: Lowered, graph: GeGraph) -> None:
    try:
        check_graph(graph, find_soc(lowered.soc))
    except GeGraphError as error:
        raise AssertionError(str(error)) from None


def listing(lowered: Lowered, graph: GeGraph) -> None:
    assert list_graph(graph) == list_graph(lowered.graph)


def masks(graph: GeGraph) -> list[Node]:
    mask = torch.bool, (CAUSAL_MASK_SIZE, CAUSAL_MASK_SIZE)
    return [node for node in graph.inputs() if (node.outputs[0].dtype, node.outputs[0].shape) == mask]


def one_mask(lowered: Lowered, graph: GeGraph) -> None:
    """All layers of the A2's read one causal mask; the DUO's decode steps need none."""
    assert len(masks(graph)) == (lowered.soc == A2)


CHECKS: dict[str, Check] = {
    "lean": lambda lowered, graph: check_lean(count_nodes(graph), lowered.model.bucket),
    "kernels": kernels,
    "gathers": lambda lowered, graph: check_gathers(gathered_bytes(graph), lowered.model, lowered.gathers),
    "legality": legality,
    "one mask": one_mask,
    "golden listing": listing,
}


def insert(graph: GeGraph, op_type: str, source: Node, **attrs: Any) -> Node:
    """A node that reads the first output of `source`, and stands in its place for all other readers."""
    desc = source.outputs[0]
    new = Node(
        f"fault_{len(graph.nodes)}", op_type, [Edge("x", source.name, 0)], [], [replace(desc, fx_name=None)], attrs
    )
    for node in graph.nodes:
        node.inputs = [
            Edge(e.name, new.name, 0) if (e.producer, e.index) == (source.name, 0) else e for e in node.inputs
        ]
    new.inputs = [Edge("x", source.name, 0)]
    graph.nodes.insert(graph.nodes.index(source) + 1, new)
    return new


def an_input(graph: GeGraph, kind: str) -> Node:
    return next(node for node in graph.inputs() if node.attrs["_model_value"].startswith(kind))


def first(graph: GeGraph, op_type: str) -> Node:
    return next(node for node in graph.nodes if node.type == op_type)


def move_a_cache(graph: GeGraph) -> None:
    insert(graph, "TensorMove", an_input(graph, "cache"))


def assign_a_cache(graph: GeGraph) -> None:
    insert(graph, "Assign", an_input(graph, "cache"))


def transpose_a_weight(graph: GeGraph) -> None:
    insert(graph, "Transpose", an_input(graph, "weight"))


def cast_a_view_of_a_weight(graph: GeGraph) -> None:
    insert(graph, "Cast", insert(graph, "Reshape", an_input(graph, "weight")), dst_type=1)


def place_an_input_on_the_host(graph: GeGraph) -> None:
    graph.attrs["_input_placements"] = [0, *graph.attrs["_input_placements"][1:]]


def add_kernels(graph: GeGraph) -> None:
    for _ in range(20):
        insert(graph, "Neg", first(graph, "SplitV"))


def lose_kernels(graph: GeGraph) -> None:
    lost = ("MatMulV2", "Add", "SplitV", "Cast", "Mul", "Neg", "GemmaRmsNorm", "RotaryMul", "GeGluV2")
    graph.nodes = [node for node in graph.nodes if node.type not in lost]


def gather_once_more(graph: GeGraph) -> None:
    cache_name = next(iter(writers(graph)))
    source = graph.by_name()[cache_name]
    desc = TensorDesc("y", HALF, (4, BLOCK, 1, 256))
    graph.nodes.append(Node("fault", "GatherV2", [Edge("x", source.name, 0)], [], [desc], {}))


def double_a_gather(graph: GeGraph) -> None:
    """It copies each row's blocks twice."""
    name = next(iter(gathered_bytes(graph)))
    node = graph.by_name()[name]
    shape = node.outputs[0].shape
    assert shape is not None
    node.outputs = [replace(node.outputs[0], shape=(2 * shape[0], *shape[1:]))]


def give_a_layer_a_mask_of_its_own(graph: GeGraph) -> None:
    (mask,) = masks(graph)
    own = replace(mask, name="fault", attrs={**mask.attrs, "index": len(graph.inputs())})
    graph.nodes.insert(0, own)
    last = [node for node in graph.nodes if node.type == "FusedInferAttentionScore"][-1]
    last.inputs = [replace(edge, producer=own.name) if edge.producer == mask.name else edge for edge in last.inputs]


def give_decode_a_mask(graph: GeGraph) -> None:
    some = an_input(graph, "weight")
    desc = replace(some.outputs[0], dtype=torch.bool, shape=(CAUSAL_MASK_SIZE, CAUSAL_MASK_SIZE))
    graph.nodes.insert(0, replace(some, name="fault", outputs=[desc]))


def set_attribute(op_type: str, name: str, value: object) -> Callable[[GeGraph], None]:
    def fault(graph: GeGraph) -> None:
        first(graph, op_type).attrs[name] = value

    return fault


def forget_a_layer(graph: GeGraph) -> None:
    next(node for node in graph.nodes if node.attrs.get("_model_layer")).attrs["_model_layer"] = ""


Faults = dict[str, tuple[str, Callable[[GeGraph], None]]]
COMMON: Faults = {
    "a cache is moved": ("lean", move_a_cache),
    "a cache is assigned": ("lean", assign_a_cache),
    "a weight is transposed": ("lean", transpose_a_weight),
    "a view of a weight is cast": ("lean", cast_a_view_of_a_weight),
    "an input is on the host": ("lean", place_an_input_on_the_host),
    "a kernel per layer too many": ("kernels", add_kernels),
    "kernels are missing": ("kernels", lose_kernels),
    "another gather": ("gathers", gather_once_more),
    "a layer's name is lost": ("golden listing", forget_a_layer),
}
FAULTS: dict[str, Faults] = {
    A2: {
        **COMMON,
        "a gather of twice the blocks": ("gathers", double_a_gather),
        "paging with blocks of 64 in a chunk": (
            "legality",
            lambda graph: first(graph, "FusedInferAttentionScore").inputs.append(
                Edge("block_table", an_input(graph, "input").name, 0)
            ),
        ),
        "another softmax scale": ("golden listing", set_attribute("FusedInferAttentionScore", "scale", 0.5)),
        "a mask per layer": ("one mask", give_a_layer_a_mask_of_its_own),
    },
    DUO: {
        **COMMON,
        "eight query heads per key head": ("legality", set_attribute("IncreFlashAttention", "num_key_value_heads", 2)),
        "another softmax scale": ("golden listing", set_attribute("IncreFlashAttention", "scale_value", 0.5)),
        "a mask in a decode step": ("one mask", give_decode_a_mask),
    },
}


@on_each_chip
def test_a_sound_graph_passes_every_check(soc: str) -> None:
    for check in CHECKS.values():
        check(step(soc), step(soc).graph)


@pytest.mark.chip
@pytest.mark.parametrize(("soc", "fault"), [(soc, fault) for soc, faults in FAULTS.items() for fault in faults])
def test_a_fault_of_a_graph_is_noticed_by_its_check(soc: str, fault: str) -> None:
    check, plant = FAULTS[soc][fault]
    graph = deepcopy(step(soc).graph)
    plant(graph)
    with pytest.raises(AssertionError):
        CHECKS[check](step(soc), graph)


@pytest.mark.parametrize("soc", FAULTS)
def test_every_check_of_a_graph_notices_some_fault(soc: str) -> None:
    assert {check for check, _ in FAULTS[soc].values()} == CHECKS.keys()


@pytest.mark.chip(A2)
def test_steps_that_are_compiled_again_are_noticed(tmp_path: Path) -> None:
    def forget_steps(model: Any) -> None:
        model._loaded.clear()

    def lower_at_every_run(model: Any) -> None:
        inputs = model.inputs
        model.inputs = lambda bucket: (model._loaded.pop(bucket, None), inputs(bucket))[1]

    check_one_graph_per_bucket(*serve_growing_lengths(tmp_path, 12, 128))
    for spoil in (forget_steps, lower_at_every_run):
        observed = serve_growing_lengths(tmp_path, 12, 128, spoil)
        with pytest.raises(AssertionError):
            check_one_graph_per_bucket(*observed)


@pytest.mark.chip(A2)
def test_slow_making_and_much_memory_are_noticed() -> None:
    hand = Phases(export=1.0, lowering=2.0)
    check_ratio(Phases(capture=3.0, lowering=4.4), hand, "in bounds")
    with pytest.raises(AssertionError):
        check_ratio(Phases(capture=3.0, lowering=3.0 * MOST_TIMES), hand, "too slow")
    graph = step(A2).graph
    check_equal_kernels(graph, graph)
    more = deepcopy(graph)
    add_kernels(more)
    with pytest.raises(AssertionError):
        check_equal_kernels(graph, more)
    with PeakMemory() as little:
        pass
    with PeakMemory() as much:
        torch.ones(50_000_000)
    with PeakMemory() as again:
        pass
    assert much.bytes - little.bytes > 150e6
    assert much.bytes - again.bytes > 150e6
