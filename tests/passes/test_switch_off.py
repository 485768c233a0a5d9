"""Any pass that is not required may be left out: the step's results stay within rounding."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from support.graphs import BFLOAT16, BUCKETS, CASES, Case, run_graph
from torch import Tensor

from graph_gemma.graph_model.numerics import TOLERANCE
from graph_gemma.passes.check import example_inputs
from graph_gemma.passes.framework.attributes import check_attributes
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes

# Greedy steps of every phase and a sampled one, each with the log-probabilities of the whole vocabulary.
PHASES = {
    "prefill": replace(BUCKETS["prefill"], logprobs=256),
    "extend": replace(BUCKETS["extend"], logprobs=256),
    "decode": replace(BUCKETS["decode"], logprobs=256),
    "sample": replace(BUCKETS["sample"], logprobs=256),
}
OPTIONAL = [cls.name for cls in DEFAULT_PASSES if not cls.required]
QUANTIZING = ["fold_dequantize", "fold_quantize"]  # test_quantization leaves them out where there is something to do


def results(case: Case, phase: str, left_out: frozenset[str]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Chosen ids, log-probabilities [batch, vocab] in the order of the ids, and the caches after the step."""
    graph = case.captured(PHASES[phase])
    passes = build_passes({cls.name: {"enabled": cls.name not in left_out} for cls in DEFAULT_PASSES})
    run_passes(graph, passes)
    check_attributes(graph, f"all passes but {set(left_out)}")
    generator = torch.Generator().manual_seed(1)
    shapes = [node.meta["val"].shape for node in graph.placeholders("cache")]
    caches = [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]
    ids, _, top_ids, top_logprobs = run_graph(graph, case.read, example_inputs(graph, past=True), caches)
    return ids, torch.empty_like(top_logprobs).scatter_(1, top_ids, top_logprobs), caches


@cache
def full_results(case: Case, phase: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    return results(case, phase, frozenset())


def assert_equal_within_rounding(case: Case, phase: str, left_out: frozenset[str]) -> None:
    expected, found = full_results(case, phase), results(case, phase, left_out)
    bound = TOLERANCE[case.dtype] * expected[1].abs().max()
    assert (found[1] - expected[1]).abs().max() <= bound
    if case.dtype == torch.float32:
        assert torch.equal(found[0], expected[0])
    elif phase != "sample":
        chosen = expected[1].gather(1, found[0][:, None])[:, 0]
        assert (expected[1].max(1).values - chosen <= bound).all()
    for left, right in zip(expected[2], found[2], strict=True):
        assert (left.float() - right.float()).abs().max() <= TOLERANCE[case.dtype] * left.abs().max()


@pytest.mark.parametrize("phase", ["prefill", "extend", "decode"])
@pytest.mark.parametrize("left_out", [name for name in OPTIONAL if name not in QUANTIZING])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_pass_left_out(case: Case, left_out: str, phase: str) -> None:
    assert_equal_within_rounding(case, phase, frozenset({left_out}))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_all_optional_passes_left_out(case: Case, phase: str) -> None:
    assert_equal_within_rounding(case, phase, frozenset(OPTIONAL))


def test_the_list_is_what_the_config_can_switch_off() -> None:
    assert OPTIONAL == [
        "fold_inv_freq",
        "rms_norm",
        "scale_residual",
        "rotary",
        "merge_qkv",
        "merge_gate_up",
        "gelu_and_mul",
        "fold_dequantize",
        "add_rms_norm",
        "fold_quantize",
    ]


def test_leaving_a_pass_out_changes_the_graph() -> None:
    graph = BFLOAT16.captured()
    run_passes(graph, [cls() for cls in DEFAULT_PASSES if cls.name != "rotary"])
    assert not graph.calls(torch.ops.gemma.rotary.default)
    assert graph.calls(torch.ops.aten.neg.default)
