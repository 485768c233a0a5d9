"""The pass manager: what the config may say, and the contract that it enforces after each pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from support.graphs import BFLOAT16, CASES, FLOAT32, LAYERS, Case, find, replace_call
from torch import fx

from graph_gemma import conf
from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.graph_model.weights import InverseFrequencies, OnePlus
from graph_gemma.passes.framework.attributes import check_attributes, find_attributes
from graph_gemma.passes.framework.contract import Matches, Pass, PassError, Tier
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.framework.matches import ONCE, per_model
from graph_gemma.passes.gelu_and_mul import GeluAndMul
from graph_gemma.passes.pipeline import DEFAULT_PASSES, KERNEL_OPTIONS, PASSES, build_kernel_options, build_passes
from graph_gemma.passes.rms_norm import RMSNorm
from graph_gemma.passes.scale_residual import ScaleResidual
from graph_gemma.passes.select_token import SelectToken

aten = torch.ops.aten
ALL: dict[str, dict[str, Any]] = {cls.name: {"enabled": True} for cls in DEFAULT_PASSES}
ATTRIBUTES = {
    "embedding_scale": 1,
    "rope_theta": 1,
    "softmax_scale": LAYERS,
    "norm_eps": 2 * LAYERS + 1,
    "norm_offset": 2 * LAYERS + 1,
}


def test_the_config_lists_the_default_passes_in_their_order() -> None:
    settings = OmegaConf.load(Path(conf.__file__).parent / "passes" / "default.yaml")
    assert list(settings) == [cls.name for cls in DEFAULT_PASSES] + list(KERNEL_OPTIONS)
    assert {name: options["enabled"] for name, options in settings.items()} == {
        **dict.fromkeys(PASSES, True),
        **dict.fromkeys(KERNEL_OPTIONS, False),
    }


def test_the_config_lists_the_options_that_passes_have() -> None:
    settings = OmegaConf.load(Path(conf.__file__).parent / "passes" / "default.yaml")
    for name, cls in {**PASSES, **KERNEL_OPTIONS}.items():
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        assert settings[name] == {"enabled": settings[name]["enabled"], **defaults}


def test_names_are_unique() -> None:
    assert len(PASSES | KERNEL_OPTIONS) == len(DEFAULT_PASSES) + len(KERNEL_OPTIONS)


def test_passes_after_kernels_are_built_apart_where_named() -> None:
    assert build_kernel_options(ALL) == []
    for name, cls in KERNEL_OPTIONS.items():
        assert build_kernel_options({name: {"enabled": False}}) == []
        assert [type(p) for p in build_kernel_options({**ALL, name: {"enabled": True}})] == [cls]
        assert [type(p) for p in build_passes({**ALL, name: {"enabled": True}})] == list(DEFAULT_PASSES)


def test_all_passes_are_built_in_the_order_of_the_config() -> None:
    assert [type(p) for p in build_passes(ALL)] == list(DEFAULT_PASSES)


def test_a_pass_is_on_unless_it_is_switched_off() -> None:
    built = build_passes({**ALL, "rotary": {}, "rms_norm": {"enabled": False}})
    assert [p.name for p in built] == [name for name in ALL if name != "rms_norm"]


def test_options_of_a_pass_are_those_of_the_config() -> None:
    built = {p.name: p for p in build_passes({**ALL, "scale_residual": {"enabled": True, "exponent": 3}})}
    assert built["scale_residual"] == ScaleResidual(exponent=3)


@pytest.mark.parametrize("name", [cls.name for cls in DEFAULT_PASSES if cls.required])
def test_a_required_pass_cannot_be_switched_off_or_left_out(name: str) -> None:
    message = rf"passes\.{name}: this pass cannot be switched off"
    with pytest.raises(UserError, match=message):
        build_passes({**ALL, name: {"enabled": False}})
    with pytest.raises(UserError, match=message):
        build_passes({other: options for other, options in ALL.items() if other != name})


def test_what_is_required_is_what_no_backend_could_do_without() -> None:
    required = {cls.name for cls in DEFAULT_PASSES if cls.required}
    quantizing = {"quantize_cache", "insert_quantization"}
    assert required == {"canonicalize", "paged_attention", "last_token", "select_token", "softcap", *quantizing}


# Attributes of the model, from the captured graph to the last.


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bucket", ["prefill", "sample"])
def test_attributes_are_followed_through_every_pass(case: Case, bucket: str) -> None:
    for cls in DEFAULT_PASSES:
        found = find_attributes(case.before(cls, bucket))
        assert {name: len(nodes) for name, nodes in found.items()} == ATTRIBUTES, cls.name


@dataclass(frozen=True)
class Vandal(Pass):
    """Applies a change and calls it a match."""

    name: ClassVar[str] = "vandal"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = ONCE
    change: Callable[[ModelGraph], None]

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return list(graph.outputs[:1])

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        self.change(graph)


class OfRanks(Vandal):
    """A pass that has something to do in a rank's graph only."""

    name: ClassVar[str] = "of_ranks"

    def idle(self, graph: ModelGraph) -> str:
        return "" if graph.shard.world_size > 1 else "there is one rank"


def test_a_pass_is_asked_in_its_turn_whether_it_is_idle() -> None:
    """Not before the first pass, when the model is not shared yet."""
    for shard, matches in ((None, None), (Shard(0, 2), 1)):
        graph = FLOAT32.captured("decode")
        run_passes(graph, [*build_passes(ALL, shard), OfRanks(lambda graph: None)])
        assert graph.matches.get("of_ranks") == matches


def change_softmax_scale(graph: ModelGraph) -> None:
    node = graph.calls(ops.paged_attention)[1]
    node.update_arg(len(node.args) - 1, 0.3)


def drop_embedding_scale(graph: ModelGraph) -> None:
    scaling = find(graph, aten.mul.Tensor, "model")
    scaling.replace_all_uses_with(scaling.args[0])


def change_embedding_scale(graph: ModelGraph) -> None:
    """sqrt(48) unrounded: what bfloat16 cannot hold."""
    find(graph, aten.mul.Tensor, "model").update_arg(1, 48**0.5)


def change_eps(graph: ModelGraph) -> None:
    node = next(n for n in graph.calls(ops.rms_norm, ops.add_rms_norm) if n.meta["layer"] == "model.norm")
    node.update_arg(len(node.args) - 1, 1e-5)


def change_theta(graph: ModelGraph) -> None:
    weight = next(n for n in graph.placeholders("weight") if n.name == "inv_freq")
    weight.meta["expression"] = InverseFrequencies(1e6, graph.config.head_dim)


def drop_norm_offset(graph: ModelGraph) -> None:
    weight = next(n for n in graph.placeholders("weight") if isinstance(n.meta["expression"], OnePlus))
    weight.meta["expression"] = weight.meta["expression"].x


VANDALISM = {
    "softmax_scale": (change_softmax_scale, LAYERS - 1),
    "embedding_scale": (change_embedding_scale, 0),
    "lost_embedding_scale": (drop_embedding_scale, 0),
    "norm_eps": (change_eps, 2 * LAYERS),
    "rope_theta": (change_theta, 0),
    "norm_offset": (drop_norm_offset, 2 * LAYERS),
}


@pytest.mark.parametrize(("change", "left"), VANDALISM.values(), ids=VANDALISM)
def test_a_pass_that_changes_an_attribute_is_stopped(
    change: Callable[[ModelGraph], None], left: int, request: pytest.FixtureRequest
) -> None:
    graph = BFLOAT16.before(SelectToken)
    attribute = request.node.callspec.id.removeprefix("lost_")
    (value,) = graph.family.attributes(graph.dtype)[attribute].values
    message = (
        rf"after vandal: {attribute} = {value} is carried by {left} nodes \(.*\), "
        rf"expected {ATTRIBUTES[attribute]}: the rewrite lost or changed it"
    )
    with pytest.raises(PassError, match=message):
        run_passes(graph, [Vandal(change)])


CAPTURED = {
    "softmax_scale": lambda g: find(g, aten.scaled_dot_product_attention.default).update_kwarg("scale", 0.3),
    "norm_eps": lambda g: find(g, aten.add.Tensor, "model.norm").update_arg(1, 1e-5),
    "rope_theta": lambda g: find(g, aten.pow.Scalar).update_arg(0, 500.0),
    "norm_offset": lambda g: find(g, aten.add.Tensor, "model.norm", 1).update_arg(1, 2.0),
    "embedding_scale": drop_embedding_scale,
}


@pytest.mark.parametrize(("attribute", "change"), CAPTURED.items(), ids=CAPTURED)
def test_a_definition_unlike_its_config_stops_at_the_first_pass(
    attribute: str, change: Callable[[ModelGraph], None]
) -> None:
    graph = BFLOAT16.captured()
    change(graph)
    with pytest.raises(PassError, match=f"after canonicalize: {attribute} = "):
        run_passes(graph, build_passes(ALL))


def test_intact_attributes_pass() -> None:
    check_attributes(BFLOAT16.before(SelectToken), "nothing")


# The rest of the contract.


def test_an_op_outside_the_vocabulary_is_stopped() -> None:
    def add_relu(graph: ModelGraph) -> None:
        gelu = find(graph, aten.gelu.default)
        replace_call(graph, gelu, aten.relu.default, gelu.args[0])

    with pytest.raises(PassError, match=r"after vandal: relu calls aten\.relu, which is no op of a step"):
        run_passes(BFLOAT16.before(GeluAndMul), [Vandal(add_relu)])


@dataclass(frozen=True)
class HalfAJob(GeluAndMul):
    """Leaves the first match and does not expect it."""

    name: ClassVar[str] = "half_a_job"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.gated_activations - 1)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return super().candidates(graph)[1:]


def test_an_op_that_a_pass_removes_may_not_remain() -> None:
    with pytest.raises(PassError, match=r"half_a_job left gelu, a call of aten\.gelu, in the graph"):
        run_passes(BFLOAT16.before(GeluAndMul), [HalfAJob()])


@dataclass(frozen=True)
class Overeager(GeluAndMul):
    name: ClassVar[str] = "overeager"
    matches: ClassVar[Matches] = per_model(lambda counts: counts.gated_activations - 1)


def test_too_many_matches_are_stopped_too() -> None:
    message = r"overeager matched 2 times, expected 1 for bucket extend-b2-t8-w2\. Nearest misses: there was no"
    with pytest.raises(PassError, match=message):
        run_passes(BFLOAT16.before(GeluAndMul), [Overeager()])


def test_at_most_three_near_misses_are_told() -> None:
    graph = FLOAT32.before(RMSNorm)
    for node in graph.calls(aten.mean.dim):
        node.update_arg(1, [1])
    with pytest.raises(PassError) as error:
        run_passes(graph, [RMSNorm()])
    assert str(error.value).count("(dim) is 1, expected -1") == 3


def test_a_broken_pass_stops_the_run_before_the_next() -> None:
    seen: list[str] = []
    graph = FLOAT32.captured()
    find(graph, aten.gelu.default).kwargs = {}
    with pytest.raises(PassError, match="gelu_and_mul"):
        run_passes(graph, build_passes(ALL), observe=lambda graph_pass, *_: seen.append(graph_pass.name))
    names = [cls.name for cls in DEFAULT_PASSES if cls is not ScaleResidual]  # which float32 does without
    assert seen == names[: names.index("gelu_and_mul")]


def test_a_dump_is_written_before_the_first_pass_and_after_each(tmp_path: Path) -> None:
    run_passes(FLOAT32.captured("decode"), build_passes(ALL), dump_dir=tmp_path)
    names = sorted(path.name for path in (tmp_path / "decode-b2-w2").iterdir())
    # Nothing is quantized, and Gemma 1 has no soft-cap.
    idle = ("scale_residual", "quantize_cache", "insert_quantization", "fold_dequantize", "fold_quantize", "softcap")
    ran = [name for name in ALL if name not in idle]
    assert names == [f"{i:02}_{name}.txt" for i, name in enumerate(["capture", *ran])]
