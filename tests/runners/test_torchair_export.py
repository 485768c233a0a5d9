"""torchair.dynamo_export compared with runners/export.py, over the stand-in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chip_processes import A2
from support.standin_commands import SERVING, checkpoint, command
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import VIEWS, GeGraph, Node, iter_edges
from graph_gemma.graph_model.ascend.graph_file import read_graph_file
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.runners.backends.ascend.bundle import Bundle, read_bundle
from graph_gemma.runners.backends.ascend.engine import compiler_config
from graph_gemma.runners.export import export
from graph_gemma.runners.llm import exporting

# They list the graph's inputs, which are others where weights are constants.
OF_INPUTS = {"ge.inputHintShape", "frozenInput"}


class Step(torch.nn.Module):
    """A step as torchair exports modules: weights are parameters, caches and the step's inputs are arguments."""

    def __init__(self, graph: ModelGraph, weights: dict[str, Tensor]) -> None:
        super().__init__()
        own = [weights[str(expression)].to("npu") for expression in graph.weight_plan.values()]
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(weight, requires_grad=False) for weight in own)
        self.step = graph.module

    def forward(self, *arguments: Tensor) -> Any:
        return self.step(*self.weights, *arguments)


def exported(folder: Path) -> tuple[Bundle, dict[Bucket, ModelGraph]]:
    """A bundle, and the graphs that were lowered for it."""
    graphs: dict[Bucket, ModelGraph] = {}
    lower = exporting.lower

    def lower_and_keep(graph: ModelGraph) -> Any:
        graphs[graph.bucket] = graph
        return lower(graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "lower", lower_and_keep)
        status, _, err = command(export, "export", *checkpoint(folder), *SERVING, f"export_dir={folder / 'bundle'}")
    assert status == 0, err
    return read_bundle(folder / "bundle"), graphs


def exported_by_torchair(graph: ModelGraph, weights: dict[str, Tensor], folder: Path) -> GeGraph:
    """What torchair.dynamo_export writes into `folder`; the .air file alone is CANN's to write."""
    import torchair

    handed_to_cann: list[dict[str, str]] = []
    placeholders = [*graph.placeholders("cache"), *graph.placeholders("input")]
    values = [node.meta["val"] for node in placeholders]
    arguments = [torch.zeros(value.shape, dtype=value.dtype).to("npu") for value in values]
    with pytest.MonkeyPatch.context() as patch:
        native = torchair._ge_concrete_graph.fx2ge_converter._torchair
        patch.setattr(native, "export", lambda model, options: handed_to_cann.append(options))
        where = {"export_path": str(folder), "export_name": "step"}
        torchair.dynamo_export(*arguments, model=Step(graph, weights), config=compiler_config(), **where)
    assert handed_to_cann == [{"export_path_dir": str(folder), "export_name": "step.air"}]
    assert {path.name for path in folder.iterdir()} == {"dynamo.pbtxt", "options.json"}
    return read_graph_file(folder / "dynamo.pbtxt")


def computing(graph: GeGraph) -> Iterator[Node]:
    """The nodes in order, without inputs, constants and views that nothing reads."""
    read = {producer for node in graph.nodes for producer, _ in iter_edges(node)}
    for node in graph.nodes:
        if node.type not in ("Data", "RefData", "Const") and (node.type not in VIEWS or node.name in read):
            yield node


def described(node: Node) -> tuple[object, ...]:
    """What a node is, without its name and the notes of either exporter."""
    attrs = {name: value for name, value in node.attrs.items() if not name.startswith("_")}
    return node.type, attrs, [(desc.name, desc.dtype, desc.shape, desc.layout) for desc in node.outputs]


def hold_equal(theirs: GeGraph, ours: GeGraph, step: Any, weights: dict[str, Tensor]) -> None:
    """The same nodes in the same order between the same tensors, of which weights are theirs as constants."""
    same: dict[str, str] = {}
    pairs = list(itertools.zip_longest(computing(theirs), computing(ours)))
    assert not [pair for pair in pairs if None in pair]
    for their, our in pairs:
        assert described(their) == described(our)
        assert len(their.controls) == len(our.controls)
        for their_edge, our_edge in zip(their.inputs, our.inputs, strict=True):
            assert (their_edge.name, their_edge.index) == (our_edge.name, our_edge.index), our
            assert same.setdefault(their_edge.producer, our_edge.producer) == our_edge.producer, (their, our)
        same[their.name] = our.name
    by_name, own_by_name = theirs.by_name(), ours.by_name()
    kinds: dict[str, int] = {}
    for name, own_name in same.items():
        if not name or own_by_name[own_name].type not in ("Data", "Const"):
            continue
        node, own = by_name[name], own_by_name[own_name]
        item = step.inputs[own.attrs["index"]] if own.type == "Data" else None
        kind = "constant" if item is None else item.kind
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind in ("constant", "weight"):
            expected = own.attrs["value"] if item is None else weights[item.name]
            assert node.type == "Const"
            assert node.attrs["value"].dtype == expected.dtype
            assert torch.equal(node.attrs["value"], expected), own_name
        else:
            assert node.type == ("RefData" if item.by_reference else "Data")
            assert [str(desc) for desc in node.outputs] == [str(desc) for desc in own.outputs]
    assert kinds.pop("constant") > 0
    assert sum(kinds.values()) == len(step.inputs), kinds
    assert len(theirs.inputs()) == len(step.inputs) - kinds["weight"]


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_torchairs_export_is_the_bundles_graph_with_constants(tmp_path: Path) -> None:
    bundle, graphs = exported(tmp_path)
    weights = dict(bundle.weights())
    assert {bucket.phase for bucket in bundle.steps} == {"prefill", "extend", "decode"}
    for bucket, step in bundle.steps.items():
        theirs = exported_by_torchair(graphs[bucket], weights, tmp_path / f"torchair-{bucket}")
        hold_equal(theirs, read_graph_file(bundle.directory / f"{bucket}.pbtxt"), step, weights)
        written = json.loads((tmp_path / f"torchair-{bucket}/options.json").read_text())
        of_graph = {**written["compile options"]["graph"], **written["execute options"]["graph"]}
        own = bundle.options(bucket)
        assert of_graph.keys() - OF_INPUTS
        assert {name: own[name] for name in of_graph.keys() - OF_INPUTS}.items() <= of_graph.items()
