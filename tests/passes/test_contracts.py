"""Every pass fails when its pattern is broken and when nothing matches, and says which earlier pass is off."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import LATER_CONFIGS
from support.graphs import FLOAT32, QUANTIZED_CASES, Case
from torch import fx

from graph_gemma import passes
from graph_gemma.graph_model import ops
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.cpu.native_int8_linear import NativeInt8Linear
from graph_gemma.passes.cpu.onednn_linear import OneDNNLinear
from graph_gemma.passes.framework.contract import Pass, PassError, out_of_order
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, PASSES, build_passes
from graph_gemma.passes.recognize import Recognize
from graph_gemma.passes.shard_tensor_parallel import ShardTensorParallel

aten = torch.ops.aten
SHARD = Shard(1, 2)
SETTINGS: dict[str, dict[str, Any]] = {name: {} for name in PASSES}
# What passes are made with, by the names of their fields; other fields have defaults.
OPTIONS = {"chip": find_soc("atlas_800i_a2"), "shard": SHARD}
# The graphs that passes get, in the order in which they are tried: the first that the pass has something to do with.
CASES = (
    FLOAT32,
    QUANTIZED_CASES["float32-w8a8-stored"],
    replace(FLOAT32, quantization=Quantization(None, kv8=True)),
    Case(LATER_CONFIGS["gemma2"].of_layers(range(2)), torch.float32),
    Case(LATER_CONFIGS["gemma3"].of_layers(range(2)), torch.float16),
)
GRAPHS = [(case, bucket, shard) for shard in (None, SHARD) for bucket in ("decode", "prefill") for case in CASES]


def classes() -> dict[str, type[Pass]]:
    """Every pass of the package, by its name."""
    modules = [
        importlib.import_module(each.name) for each in pkgutil.walk_packages(passes.__path__, f"{passes.__name__}.")
    ]
    found = [cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)]
    return {cls.name: cls for cls in found if issubclass(cls, Pass) and "name" in vars(cls)}


CLASSES = classes()


@dataclass(frozen=True)
class Subject:
    """A pass and the graph that it gets: a case's, after the default passes before it."""

    graph_pass: Pass
    case: Case
    bucket: str
    shard: Shard | None

    def graph(self) -> ModelGraph:
        found = build_passes(SETTINGS, self.shard)
        names = [each.name for each in found]
        before = names.index(self.graph_pass.name) if self.graph_pass.name in names else len(names)
        return _graph(self.case, self.bucket, self.shard, before).copy()


@cache
def _graph(case: Case, bucket: str, shard: Shard | None, count: int) -> ModelGraph:
    graph = case.captured(bucket)
    run_passes(graph, build_passes(SETTINGS, shard)[:count])
    return graph


@cache
def subject_of(name: str) -> Subject:
    cls = CLASSES[name]
    graph_pass = cls(**{field.name: OPTIONS[field.name] for field in fields(cls) if field.name in OPTIONS})
    shares = name not in PASSES and name in {each.name for each in build_passes(SETTINGS, SHARD)}
    tried = (Subject(graph_pass, *graph) for graph in GRAPHS if not shares or graph[2])
    return next(each for each in tried if not graph_pass.idle(each.graph()))


def hide(graph: ModelGraph, nodes: list[fx.Node], keep_op: bool) -> None:
    """Let the nodes be something that no pass looks for: in a module that is not the model's, and another op."""
    for node in nodes:
        node.meta["layer"] = "elsewhere"
        if not keep_op:
            node.target = aten.relu.default
    if set(nodes) & set(graph.outputs):
        graph.set_outputs()


def without_chip(graph_pass: Pass) -> Pass:
    """A pass of a chip's kernels whose rewrite needs no kernel: how often it matches is what counts."""
    if not type(graph_pass).__module__.startswith("graph_gemma.passes.ascend"):
        return graph_pass
    stub = type("Stub", (type(graph_pass),), {"rewrite": lambda *_: None})
    stubbed: Pass = object.__new__(stub)
    stubbed.__dict__.update(graph_pass.__dict__)
    return stubbed


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_to_match_is_an_error(name: str) -> None:
    graph, graph_pass = subject_of(name).graph(), without_chip(subject_of(name).graph_pass)
    # Sharding tells linears by their module; the embedding, which it tells by its op, is the one match that stays.
    sharding = isinstance(graph_pass, ShardTensorParallel)
    hide(graph, graph_pass.candidates(graph), keep_op=sharding)
    found = int(sharding)
    with pytest.raises(PassError, match=rf"^{graph_pass.name} (matched {found} times|found 0 calls of .*), expected"):
        run_passes(graph, [graph_pass])


@pytest.mark.parametrize("name", CLASSES)
def test_one_match_less_is_an_error(name: str) -> None:
    graph, graph_pass = subject_of(name).graph(), without_chip(subject_of(name).graph_pass)
    last = [n for n in graph_pass.candidates(graph) if n.target != aten._assert_tensor_metadata.default][-1]
    hide(graph, [last], keep_op=isinstance(graph_pass, ShardTensorParallel))
    with pytest.raises(PassError, match=rf"^({graph_pass.name}|after {graph_pass.name}:) "):
        run_passes(graph, [graph_pass])


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if issubclass(cls, Recognize)])
def test_arithmetic_with_any_other_op_is_an_error(name: str) -> None:
    whole, graph_pass = subject_of(name).graph(), subject_of(name).graph_pass
    recognized = whole.copy()
    run_passes(recognized, [graph_pass])
    layer = graph_pass.candidates(whole)[-1].meta["layer"]
    gone = {n.name for n in whole.calls() if n.meta["layer"] == layer} - {n.name for n in recognized.calls()}
    assert gone
    for index, node in enumerate(whole.calls()):
        if node.name in gone:
            graph = whole.copy()
            graph.calls()[index].target = aten.relu.default
            with pytest.raises(PassError, match=rf"^{name} matched \d+ times, expected"):
                run_passes(graph, [graph_pass])


NEEDS = [(name, need) for name, cls in CLASSES.items() for need in cls.needs]


@pytest.mark.parametrize(("name", "off"), NEEDS, ids=[f"{name} without {off}" for name, off in NEEDS])
def test_a_pass_that_another_leaves_nothing_says_which(name: str, off: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    graph_pass = subject.graph_pass
    others = [p for p in build_passes(SETTINGS) if p.name != off]
    names = [p.name for p in others]
    graph = subject.case.captured(subject.bucket)
    run_passes(graph, others[: names.index(name)] if name in names else others)
    checker = PassChecker(subject.case.read)
    run_passes(graph, [graph_pass], dump_dir=tmp_path, observe=checker)
    assert graph.skipped[name] == f"{off} is off"
    assert [comparison.skipped for comparison in checker.comparisons] == [f"{off} is off"]
    (text,) = [path.read_text() for path in tmp_path.rglob(f"01_{name}.txt")]
    assert text.startswith(f"# skipped: {name} ({graph_pass.tier.value}), {off} is off\n")


def test_int8_weights_that_are_not_folded_are_no_int8_products() -> None:
    graph = QUANTIZED_CASES["float32-w8a16"].captured("decode")
    run_passes(graph, [cls() for cls in DEFAULT_PASSES if cls.name != "fold_dequantize"])
    run_passes(graph, [OneDNNLinear(), NativeInt8Linear()])
    assert graph.skipped == {"native_int8_linear": "fold_dequantize is off"}
    assert graph.matches["onednn_linear"] == len(graph.calls(ops.onednn_linear))


def test_a_pass_that_matches_though_another_is_off_is_stopped() -> None:
    graph = FLOAT32.before(PASSES["add_rms_norm"])
    del graph.matches["rms_norm"]
    with pytest.raises(PassError, match=r"add_rms_norm matched 4 times, expected 0 .*, as rms_norm is off"):
        run_passes(graph, [PASSES["add_rms_norm"]()])


ORDERS = [(cls, earlier) for cls in DEFAULT_PASSES for earlier in (*cls.needs, *cls.after)]


@pytest.mark.parametrize(("cls", "earlier"), ORDERS, ids=lambda value: getattr(value, "name", value))
def test_a_config_that_breaks_the_order_is_refused_naming_both(cls: type[Pass], earlier: str) -> None:
    names = [name for name in PASSES if name != cls.name]
    names.insert(names.index(earlier), cls.name)
    with pytest.raises(UserError, match=r"passes\.(\w+) stands before passes\.(\w+), and must come after it") as error:
        build_passes({name: {} for name in names})
    assert f"passes.{cls.name} " in str(error.value)
    assert f" passes.{earlier}, " in str(error.value)


def test_the_manager_refuses_an_order_too() -> None:
    with pytest.raises(PassError, match="add_rms_norm must come after rms_norm, and comes before it"):
        run_passes(FLOAT32.captured(), [PASSES[name]() for name in ("canonicalize", "add_rms_norm", "rms_norm")])


def test_orders_name_passes_that_exist() -> None:
    for cls in CLASSES.values():
        assert {*cls.needs, *cls.after} <= set(CLASSES)
    assert out_of_order([cls() for cls in DEFAULT_PASSES]) is None


def test_every_pass_is_found() -> None:
    root = Path(__file__).parents[2] / "passes"
    names = {
        name
        for path in root.rglob("*.py")
        for name in re.findall(r'^    name: ClassVar\[str\] = "(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert names == set(CLASSES) >= set(PASSES)
