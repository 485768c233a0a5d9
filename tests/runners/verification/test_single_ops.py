"""Every op of lowered graphs, alone: the interpreter against formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from support import torchair_steps as steps
from support.chip_processes import A2, DUO, on_each_chip

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.verification import acceptance
from graph_gemma.runners.verification.single_ops import SingleOp, cut_out_ops

HALF, BRAIN = torch.float16, torch.bfloat16
TINY = replace(steps.BASE, num_hidden_layers=1)
FLOAT = (steps.StepCase(TINY, HALF, 64, "extend"), steps.StepCase(TINY, HALF, 64, "decode", sampled=True))
QUANTIZED = {
    A2: (
        steps.StepCase(TINY, HALF, 64, "decode", scheme="w8a8"),
        steps.StepCase(TINY, BRAIN, 64, "decode", "fused", "w8a8"),
        steps.StepCase(TINY, HALF, 64, "decode", "fused", "w8a8_dynamic"),
        steps.StepCase(TINY, BRAIN, 64, "extend", scheme="w8a16", kv8=True),
        steps.StepCase(TINY, HALF, 64, "decode", kv8=True),
    ),
    DUO: (
        steps.StepCase(TINY, HALF, 64, "decode", "fused", "w8a8"),
        steps.StepCase(TINY, HALF, 64, "decode", scheme="w8a16"),
    ),
}
# Some that only float, sampled or quantized graphs bring in.
TYPES = {
    A2: {"FusedInferAttentionScore", "ScatterPaKvCache", "GemmaRmsNorm", "StridedSliceV2", "Sort", "TopKV2"},
    DUO: {"PromptFlashAttention", "IncreFlashAttention", "ScatterNdUpdate", "RmsNorm", "StridedSliceV2", "Sort"},
}
QUANTIZED_TYPES = {
    A2: {
        *("Quantize", "DynamicQuant", "AddRmsNormQuant", "AddRmsNormDynamicQuant"),
        *("QuantBatchMatmulV3", "WeightQuantBatchMatmulV2"),
    },
    DUO: {"Quantize", "AddRmsNormQuant", "QuantBatchMatmulV3", "WeightQuantBatchMatmulV2"},
}


def perturbed(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors, one element of the first off by 5 % of the largest value, or by 1."""
    first = values[0].clone()
    flat = first.view(-1)
    if first.is_floating_point():
        finite = torch.where(flat.isfinite(), flat, 0.0)
        flat[-1] = 0.05 * finite.abs().max().clamp(min=1e-2) + finite[-1]
    else:
        flat[-1] = ~flat[-1] if first.dtype is torch.bool else flat[-1] + 1
    return [first, *values[1:]]


def single_ops(soc: str, cases: Sequence[steps.StepCase]) -> list[SingleOp]:
    found: dict[str, SingleOp] = {}
    for case in cases:
        graph = case.selected(find_soc(soc))
        inputs = steps.step_inputs(case)
        caches = [cache.nan_to_num() for cache in steps.filled_caches(case, graph, inputs)]
        arguments = [*steps.weights_of(graph, case), *caches, *(inputs[n.name] for n in graph.placeholders("input"))]
        found.update(cut_out_ops(lower(graph), arguments, str(case.bucket)))
    return list(found.values())


@cache
def all_ops(soc: str) -> list[SingleOp]:
    return single_ops(soc, (*FLOAT, *QUANTIZED[soc]))


@on_each_chip
def test_every_op_equals_its_formula(soc: str) -> None:
    problems = [result for result in acceptance.verify_ops(all_ops(soc)) if result.problem]
    assert not problems, problems
    missing = (TYPES[soc] | QUANTIZED_TYPES[soc]) - {single.node.type for single in all_ops(soc)}
    assert not missing, missing


@pytest.mark.chip(A2)
def test_an_error_in_any_op_is_noticed() -> None:
    unnoticed = []
    interpret = acceptance.interpret
    for single in all_ops(A2):
        for name, who in (("interpret", "the interpreter differs from the formula"), ("run_on_engine", "the stand-in")):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(acceptance, name, lambda one: perturbed(interpret(one)))
                if who not in acceptance.verify_op(single).problem:
                    unnoticed.append((single.key, who))
    assert not unnoticed, unnoticed


@pytest.mark.chip(A2)
def test_an_op_without_formula_or_refused_by_the_engine_fails() -> None:
    single = next(one for one in all_ops(A2) if one.node.type == "GeGluV2")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(acceptance.FORMULAS, "GeGluV2")
        assert "no formula" in acceptance.verify_op(single).problem

    def refuse(one: SingleOp) -> list[torch.Tensor]:
        raise RuntimeError("E10001")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceptance, "run_on_engine", refuse)
        patch.setattr(standin, "is_standin", lambda: False)
        assert acceptance.verify_op(single).problem == "the device refuses it: E10001"
