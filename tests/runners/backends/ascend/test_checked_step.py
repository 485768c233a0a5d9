"""Level 2 inside a run: what CheckedStep lets pass and what it stops at."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from support import torchair_steps as steps
from support.chip_processes import A2, DUO
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.numerics import relative_difference
from graph_gemma.passes.check import example_inputs
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.checked_step import CheckedStep
from graph_gemma.runners.backends.ascend.lower import LoweredStep, lower
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes

HALF = torch.float16
PHASES = ("prefill", "extend", "decode")
Change = Callable[[Any], None]  # of the ge.proto.GraphDef


@dataclass(frozen=True)
class Prepared:
    """A step that ends with tokens, its kernels selected, lowered and loaded."""

    graph: ModelGraph
    lowered: LoweredStep
    run: Callable[..., Any]
    weights: list[Tensor]

    def arguments(self) -> list[Tensor]:
        """Weights, caches filled with random numbers, inputs."""
        graph, inputs = self.graph, example_inputs(self.graph, past=True)
        caches = [torch.randn(n.meta["val"].shape).to(HALF).to("npu") for n in graph.placeholders("cache")]
        return [*self.weights, *caches, *(inputs[n.name].to("npu") for n in graph.placeholders("input"))]

    def check(self, run: Callable[..., Any] | None = None) -> CheckedStep:
        """Run the step once under its checks, or let `run` stand in its place."""
        checked = CheckedStep(self.graph, self.lowered, run or self.run)
        checked(*self.arguments())
        return checked


@cache
def prepared(soc: str, phase: str, selection: str = "greedy", logprobs: int = -1) -> Prepared:
    bucket = Bucket(phase, 3, 1 if phase == "decode" else 16, 0 if phase == "prefill" else 2, selection, logprobs)  # type: ignore[arg-type]
    graph = capture(steps.BASE, bucket, KVCacheConfig(8, 64), HALF)
    run_passes(graph, [cls() for cls in DEFAULT_PASSES])
    run_passes(graph, kernel_passes(AscendOptions(find_soc(soc), "exact")))
    weights = [w.to("npu") for w in steps.weights_of(graph, steps.StepCase(steps.BASE, HALF, 64, "decode"))]
    lowered = lower(graph)
    step = Prepared(graph, lowered, lambda: None, weights)
    return replace(step, run=lowered.load())


@pytest.mark.parametrize("soc", [A2, pytest.param(DUO, marks=pytest.mark.slow)])
@pytest.mark.chip
def test_every_phase_agrees_node_by_node(soc: str) -> None:
    for phase in PHASES:
        found = prepared(soc, phase).check().findings
        assert (found.runs, found.tokens, found.ties) == (1, 3, 0)
        assert found.nodes > 60, found
        assert 0 <= found.error < 4e-3, found
    found = prepared(soc, "decode", "sample", 3).check().findings
    assert found.tokens == 3


@pytest.mark.chip(A2)
def test_loading_a_step_warns_of_nothing() -> None:
    step = prepared(A2, "decode")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.lowered.load()


def ops(proto: Any, op_type: str) -> list[Any]:
    found = [op for op in proto.op if op.type == op_type]
    assert found, op_type
    return found


def set_attr(op_type: str, name: str, value: object, kind: str = "f", index: int = 0) -> Change:
    def change(proto: Any) -> None:
        setattr(ops(proto, op_type)[index].attr[name], kind, value)

    return change


def swap_inputs(op_type: str, first: int, second: int) -> Change:
    def change(proto: Any) -> None:
        op = ops(proto, op_type)[0]
        op.input[first], op.input[second] = op.input[second], op.input[first]

    return change


# Faults of a lowering, with the node that must be named.
LOWERING_FAULTS: dict[str, tuple[str, Change, str]] = {
    "embedding scale": ("decode", set_attr("Muls", "value", 1.0), "Cast Cast_1"),
    "softmax scale": (
        "decode",
        set_attr("FusedInferAttentionScore", "scale", 0.5),
        "FusedInferAttentionScore FusedInferAttentionScore",
    ),
    "second layer's softmax scale": (
        "decode",
        set_attr("FusedInferAttentionScore", "scale", 0.5, index=1),
        "FusedInferAttentionScore FusedInferAttentionScore_1",
    ),
    "norm epsilon": ("decode", set_attr("GemmaRmsNorm", "epsilon", 0.5), "GemmaRmsNorm GemmaRmsNorm"),
    "gate and up": ("decode", set_attr("GeGluV2", "activate_left", False, "b"), "GeGluV2 GeGluV2"),
    "cosine and sine": ("decode", swap_inputs("RotaryMul", 1, 2), "RotaryMul RotaryMul"),
    "keys and values": (
        "decode",
        swap_inputs("FusedInferAttentionScore", 1, 2),
        "FusedInferAttentionScore FusedInferAttentionScore",
    ),
    "lost alignment of the mask": (
        "extend",
        set_attr("FusedInferAttentionScore", "sparse_mode", 0, "i"),
        "FusedInferAttentionScore FusedInferAttentionScore",
    ),
}


@pytest.mark.chip(A2)
@pytest.mark.parametrize("fault", LOWERING_FAULTS)
def test_a_wrong_lowering_is_stopped_at_the_wrong_node(fault: str) -> None:
    phase, change, node = LOWERING_FAULTS[fault]
    step = prepared(A2, phase)
    proto = step.lowered.concrete.graph._proto
    sound = type(proto)()
    sound.CopyFrom(proto)
    try:
        change(proto)
        with pytest.raises(UserError) as error:
            step.check(run=lambda *arguments: ())
    finally:
        proto.CopyFrom(sound)
    message = str(error.value)
    assert f"check: {step.graph.bucket}: " in message
    assert f"The first that differs is {node} (" in message


@pytest.mark.chip(A2)
def test_a_recording_check_notes_what_it_does_not_stop_at() -> None:
    step = prepared(A2, "decode")
    recording = CheckedStep(step.graph, step.lowered, other_results(other_token)(step.run), record=True)
    recording(*step.arguments())
    assert len(recording.findings.problems) == 1


def other_results(change: Callable[[list[Tensor], tuple[Tensor, ...]], None]) -> Callable[..., Any]:
    """Change what a run returns, or the arguments that it has written."""

    def wrap(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Tensor) -> list[Tensor]:
            outputs = [output.cpu() for output in run(*arguments)]
            change(outputs, arguments)
            return [output.to("npu") for output in outputs]

        return wrapped

    return wrap


def other_token(outputs: list[Tensor], arguments: tuple[Tensor, ...]) -> None:
    outputs[0][1] = (outputs[0][1] + 1) % steps.BASE.vocab_size


def foreign_slot(outputs: list[Tensor], arguments: tuple[Tensor, ...]) -> None:
    cache = next(tensor for tensor in arguments if tensor.dim() == 4)
    changed = cache.cpu()
    changed[7, 63] = 1.0
    cache.copy_(changed)


@pytest.mark.chip(A2)
@pytest.mark.parametrize("change", [other_token, foreign_slot])
def test_a_run_that_is_not_the_graph_is_stopped(change: Callable[..., None]) -> None:
    step = prepared(A2, "decode")
    with pytest.raises(UserError, match="is not what the interpreter computes"):
        step.check(other_results(change)(step.run))


@pytest.mark.chip(A2)
def test_a_device_may_differ_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device: what a run gives is compared with the reference, and a token with the reference's logits."""
    step = prepared(A2, "decode")
    monkeypatch.setattr(standin, "is_standin", lambda: False)
    assert step.check().findings.tokens == 6, "the interpreter's and the device's"
    with pytest.raises(UserError, match=r"the device chooses tokens .* not because their logits are equal"):
        step.check(other_results(other_token)(step.run))
    with pytest.raises(UserError, match="the device changes key_cache_0 outside the slots"):
        step.check(other_results(foreign_slot)(step.run))
    undecided = replace(step, weights=[torch.zeros(w.shape, dtype=w.dtype).to("npu") for w in step.weights])
    findings = undecided.check(other_results(other_token)(step.run)).findings
    assert findings.ties == 1, "all logits are equal"


def test_differences_of_what_is_not_finite() -> None:
    a = torch.tensor([1.0, torch.inf, torch.nan])
    assert relative_difference(a, a.clone()) == 0
    assert relative_difference(a, torch.tensor([1.0, torch.inf, 0.0])) == float("inf")
    assert relative_difference(a, torch.tensor([1.0, -torch.inf, torch.nan])) == float("inf")
    assert relative_difference(torch.zeros(2), torch.tensor([0.0, 0.5])) == 0.5
