"""Gemma 2 and 3 through every pass: windows, soft-caps, norms of heads and branches, two rotary bases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.checkpoints import make_model
from support.configs import LATER_CONFIGS
from support.graphs import BUCKETS, KV_CACHE

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig
from graph_gemma.graph_model.families import Attention, definition, family_of
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.weights import InverseFrequencies
from graph_gemma.passes.check import check_passes
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.passes.select_token import SelectToken

PASSES = [cls() for cls in DEFAULT_PASSES]


def rewritten(config: GemmaConfig, bucket: str = "decode", **options: Any) -> ModelGraph:
    graph = capture(config, BUCKETS[bucket], KV_CACHE, torch.float32, **options)
    run_passes(graph, PASSES)
    return graph


@pytest.mark.parametrize(
    ("name", "bucket"),
    [("gemma2", "extend"), ("gemma2", "sample"), ("gemma3", "prefill"), ("gemma3", "decode"), ("gemma3", "score")],
)
def test_every_pass_holds_its_tier(name: str, bucket: str) -> None:
    config = replace(LATER_CONFIGS[name], sliding_window=5)  # type: ignore[call-arg]
    dtype = torch.bfloat16 if bucket == "decode" else torch.float32
    weights = make_model(config).state_dict()
    comparisons = check_passes(config, dtype, PASSES, weights.__getitem__, [BUCKETS[bucket]])
    expected = {"rms_norm", "rotary", "paged_attention", "add_rms_norm"} | ({"softcap"} if name == "gemma2" else set())
    assert {c.graph_pass.name for c in comparisons} >= expected


@pytest.mark.parametrize("name", LATER_CONFIGS)
def test_attention_is_as_its_layer_is_described(name: str) -> None:
    graph = rewritten(LATER_CONFIGS[name])
    layers = graph.family.layers
    calls = graph.calls(ops.paged_attention)
    assert len(calls) == len(layers)
    for call, layer in zip(calls, layers, strict=True):
        described = {"window": layer.attention.window, "softcap": layer.attention.softcap}
        assert call.kwargs == {key: value for key, value in described.items() if value is not None}
        assert call.args[-1] == layer.attention.softmax_scale
    assert {layer.attention.window for layer in layers} == {None, 24}


def test_an_int8_cache_keeps_window_and_softcap() -> None:
    graph = rewritten(LATER_CONFIGS["gemma2"], quantization=Quantization(None, kv8=True))
    found = [call.kwargs for call in graph.calls(ops.paged_attention_int8)]
    assert found == [{"window": 24, "softcap": 4.0}, {"softcap": 4.0}, {"window": 24, "softcap": 4.0}]


def test_each_kind_of_layer_has_its_frequencies() -> None:
    graph = rewritten(LATER_CONFIGS["gemma3"])
    found = {each for each in graph.weight_plan.values() if isinstance(each, InverseFrequencies)}
    assert found == {InverseFrequencies(5000.0, 16, 8.0), InverseFrequencies(100.0, 16)}


def test_logits_are_capped_after_the_last_token_is_taken() -> None:
    graph = rewritten(LATER_CONFIGS["gemma2"], "extend")
    (cap,) = graph.calls(ops.softcap)
    assert cap.args[1] == 6.0
    assert cap.meta["val"].shape == (2, 256)


def with_wider_window(q: Any, k: Any, v: Any, attention: Attention) -> Any:
    window = None if attention.window is None else attention.window + 1
    return ATTEND(q, k, v, replace(attention, window=window))


def without_window(q: Any, k: Any, v: Any, attention: Attention) -> Any:
    return ATTEND(q, k, v, replace(attention, window=None))


def without_softcap(q: Any, k: Any, v: Any, attention: Attention) -> Any:
    return ATTEND(q, k, v, replace(attention, softcap=None))


def capped_after_the_mask(q: Any, k: Any, v: Any, attention: Attention) -> Any:
    group = attention.heads // attention.kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    steps = torch.arange(q.shape[2])
    visible = (steps <= steps[:, None]) & (steps > steps[:, None] - (attention.window or 1000))
    scores = torch.matmul(q, k.transpose(2, 3)) * attention.softmax_scale
    scores = definition.softcap(scores.masked_fill(~visible, -torch.inf), attention.softcap or 1.0)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(q.dtype), v)


ATTEND = definition.attend


@pytest.mark.parametrize(
    ("name", "attend", "reason"),
    [
        ("gemma3", with_wider_window, "after canonicalize: window = 24 is carried by 0 nodes"),
        ("gemma3", without_window, "after canonicalize: window = 24 is carried by 0 nodes"),
        ("gemma2", with_wider_window, "after canonicalize: window = 24 is carried by 0 nodes"),
        ("gemma2", without_softcap, r"after canonicalize: attention_softcap = 4\.0 is carried by 0 nodes"),
        ("gemma2", capped_after_the_mask, r"paged_attention matched 0 times, .*expected a call of aten\.masked_fill"),
    ],
)
def test_a_definition_that_differs_is_found_out(
    name: str, attend: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The definition's, not what the pass compares it with.
    monkeypatch.setattr(definition, "attend", attend)
    with pytest.raises(PassError, match=reason):
        rewritten(LATER_CONFIGS[name], "extend")


def drop(name: str) -> Callable[[ModelGraph], None]:
    def change(graph: ModelGraph) -> None:
        node = graph.calls(ops.paged_attention)[0]
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}

    return change


def uncap(graph: ModelGraph) -> None:
    (node,) = graph.calls(ops.softcap)
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "change", "attribute"),
    [
        ("gemma3", drop("window"), "window = 24 is carried by 1 nodes"),
        ("gemma2", drop("window"), "window = 24 is carried by 1 nodes"),
        ("gemma2", drop("softcap"), r"attention_softcap = 4\.0 is carried by 2 nodes"),
        ("gemma2", uncap, r"logit_softcap = 6\.0 is carried by 0 nodes"),
    ],
)
def test_a_pass_that_drops_one_is_found_out(name: str, change: Callable[[ModelGraph], None], attribute: str) -> None:
    class Dropping(SelectToken):
        def prepare(self, graph: ModelGraph) -> None:
            change(graph)
            graph.clean()

    with pytest.raises(PassError, match=rf"after select_token: {attribute}"):
        run_passes(capture(LATER_CONFIGS[name], BUCKETS["decode"], KV_CACHE, torch.float32), [*PASSES[:-1], Dropping()])


def test_a_wrong_base_of_one_layer_changes_the_logits() -> None:
    """Frequencies are shared by layers: that each reads its own is checked by the definition's logits."""
    config = LATER_CONFIGS["gemma3"]
    assert isinstance(config, Gemma3Config)
    model = make_model(config)
    types = (*config.layer_types[:-2], *reversed(config.layer_types[-2:]))
    ids = torch.randint(3, 250, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits
        for wrong in (False, True):
            plain = family_of(replace(config, layer_types=types) if wrong else config).model()
            plain.load_state_dict(model.state_dict())
            near = (plain(ids, torch.arange(20)[None]) - expected).abs().max() <= 1e-5 * expected.abs().max()
            assert near == (not wrong)


def test_smoothing_and_quantizing_follow_the_norms_of_the_family() -> None:
    for config in LATER_CONFIGS.values():
        assert isinstance(config, Gemma2Config | Gemma3Config)
        groups = {group.role: group for group in family_of(config).groups}
        assert groups["gate_up"].norm.endswith("pre_feedforward_layernorm")
        assert groups["qkv"].norm.endswith("input_layernorm")
