"""Every pass fails when its pattern is broken and when nothing matches, and says which earlier pass is off."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from support.graphs import BFLOAT16, FLOAT32, QUANTIZED_CASES, Case
from torch import fx

from graph_model import ops
from graph_model.chips.registry import find_soc
from graph_model.errors import UserError
from graph_model.graph import ModelGraph
from graph_model.quantization.linears import Quantization
from graph_model.tensor_parallel import Shard
from passes.ascend.attention import AscendFusedAttention
from passes.ascend.flat_attention import AscendFlatAttention
from passes.ascend.geglu import AscendGeGlu
from passes.ascend.int8_attention import AscendInt8Attention
from passes.ascend.last_token import AscendLastToken
from passes.ascend.linear import AscendLinear
from passes.ascend.matmul_all_reduce import AscendMatmulAllReduce
from passes.ascend.norm import AscendNormExact, AscendNormFused
from passes.ascend.quant import AscendQuant
from passes.ascend.rotary import AscendRotary
from passes.check import PassChecker
from passes.cpu.native_int8_linear import NativeInt8Linear
from passes.cpu.onednn_linear import OneDNNLinear
from passes.cpu.skinny_linear import SkinnyLinear
from passes.cpu.tiled_linear import TiledLinear
from passes.framework.contract import Pass, PassError, out_of_order
from passes.framework.manager import run_passes
from passes.pipeline import DEFAULT_PASSES, PASSES, build_passes
from passes.shard_tensor_parallel import ShardTensorParallel

aten = torch.ops.aten
A2, DUO = find_soc("atlas_800i_a2"), find_soc("atlas_300i_duo")
STATIC = QUANTIZED_CASES["float32-w8a8-stored"]
KV8 = replace(FLOAT32, quantization=Quantization(None, kv8=True))
CASE_OF = {"insert_quantization": STATIC, "fold_dequantize": STATIC, "fold_quantize": STATIC, "quantize_cache": KV8}


@dataclass(frozen=True)
class Subject:
    """A pass and the graph that it gets: the case's, after the default passes before it."""

    graph_pass: Pass
    case: Case = FLOAT32
    bucket: str = "decode"
    shard: Shard | None = None

    def graph(self) -> ModelGraph:
        return _graph(self).copy()


@cache
def _graph(subject: Subject) -> ModelGraph:
    graph = subject.case.captured(subject.bucket)
    passes = build_passes({name: {} for name in PASSES}, subject.shard)
    names = [p.name for p in passes]
    before = names.index(subject.graph_pass.name) if subject.graph_pass.name in names else len(names)
    run_passes(graph, passes[:before])
    return graph


SHARD = Shard(1, 2)
SUBJECTS = {
    subject.graph_pass.name: subject
    for subject in (
        *(Subject(cls(), CASE_OF.get(cls.name, FLOAT32)) for cls in DEFAULT_PASSES),
        Subject(ShardTensorParallel(SHARD), shard=SHARD),
        Subject(build_passes({name: {} for name in PASSES}, SHARD)[-1], shard=SHARD),
        Subject(SkinnyLinear(), BFLOAT16),
        Subject(OneDNNLinear()),
        Subject(TiledLinear(), BFLOAT16),
        Subject(NativeInt8Linear(), STATIC),
        Subject(AscendQuant(A2), STATIC),
        Subject(AscendFusedAttention(A2)),
        Subject(AscendInt8Attention(A2), KV8),
        Subject(AscendFlatAttention(DUO)),
        Subject(AscendNormExact(A2)),
        Subject(AscendNormFused()),
        Subject(AscendRotary(A2)),
        Subject(AscendGeGlu()),
        Subject(AscendLinear(A2)),
        Subject(AscendLastToken()),
        Subject(AscendMatmulAllReduce(), bucket="prefill", shard=SHARD),
    )
}


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
    if not type(graph_pass).__module__.startswith("passes.ascend"):
        return graph_pass
    stub = type("Stub", (type(graph_pass),), {"rewrite": lambda *_: None})
    stubbed: Pass = object.__new__(stub)
    stubbed.__dict__.update(graph_pass.__dict__)
    return stubbed


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_nothing_to_match_is_an_error(subject: Subject) -> None:
    graph, graph_pass = subject.graph(), without_chip(subject.graph_pass)
    assert not graph_pass.idle(graph)
    # Sharding tells linears by their module; the embedding, which it tells by its op, is the one match that stays.
    sharding = isinstance(graph_pass, ShardTensorParallel)
    hide(graph, graph_pass.candidates(graph), keep_op=sharding)
    found = int(sharding)
    with pytest.raises(PassError, match=rf"^{graph_pass.name} (matched {found} times|found 0 calls of .*), expected"):
        run_passes(graph, [graph_pass])


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_one_match_less_is_an_error(subject: Subject) -> None:
    graph, graph_pass = subject.graph(), without_chip(subject.graph_pass)
    last = [n for n in graph_pass.candidates(graph) if n.target != aten._assert_tensor_metadata.default][-1]
    hide(graph, [last], keep_op=isinstance(graph_pass, ShardTensorParallel))
    with pytest.raises(PassError, match=rf"^({graph_pass.name}|after {graph_pass.name}:) "):
        run_passes(graph, [graph_pass])


NEEDS = [(name, need) for name, subject in SUBJECTS.items() for need in subject.graph_pass.needs]


@pytest.mark.parametrize(("name", "off"), NEEDS, ids=[f"{name} without {off}" for name, off in NEEDS])
def test_a_pass_that_another_leaves_nothing_says_which(name: str, off: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    graph_pass = subject.graph_pass
    passes = [p for p in build_passes({each: {} for each in PASSES}) if p.name != off]
    names = [p.name for p in passes]
    graph = subject.case.captured(subject.bucket)
    run_passes(graph, passes[: names.index(name)] if name in names else passes)
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
    known = {*PASSES, *(subject.graph_pass.name for subject in SUBJECTS.values())}
    for subject in SUBJECTS.values():
        assert {*subject.graph_pass.needs, *subject.graph_pass.after} <= known
    assert out_of_order([cls() for cls in DEFAULT_PASSES]) is None


def test_every_pass_is_a_subject() -> None:
    """A pass that is added is added here as well."""
    root = Path(__file__).parents[2] / "passes"
    names = {
        name
        for path in root.rglob("*.py")
        for name in re.findall(r'^    name: ClassVar\[str\] = "(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert names == {subject.graph_pass.name for subject in SUBJECTS.values()}
