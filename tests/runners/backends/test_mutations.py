"""Faults planted into graphs whose kernels were selected are noticed, each by the check that it names.

attributes: the model's attributes are followed to the final graph. copies: caches and weights that the lowered graph
copies. interpreter: the GE interpreter refuses. numbers: results differ from the canonical graph's by more than
rounding. kernels: the lowered graph has more of them than budgeted, though it computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from support import torchair_steps as steps
from support.ascend_budgets import check_lean
from support.chip_processes import A2, DUO
from support.planted_faults import (
    FUSED,
    Mutation,
    blocks_one_late,
    cap_after_the_mask,
    cast_a_weight,
    change_keyword,
    copy_a_cache,
    drop_keywords,
    given_as_a_band,
    halved,
    hide_own_token,
    lose_embedding_scale,
    lose_norm_offset,
    lose_softcap,
    negate_twice,
    norm_after_rotation,
    other_layers_base,
    other_pool,
    rotate_the_other_way,
    rows_swapped,
    set_argument,
    shifted,
    subtract_norm_offset,
    swap_arguments,
    swap_scattered_caches,
    transpose_a_weight,
    widened,
    zero_slots,
)
from support.torchair_steps import GEMMA2, GEMMA3

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.attributes import check_attributes
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.printer import count_nodes

CATCHERS = {"attributes", "copies", "interpreter", "numbers", "kernels"}
SCATTER = "npu::npu_scatter_pa_kv_cache"
ONE_KV_HEAD = replace(GEMMA2, num_key_value_heads=1)  # so that prefill turns no heads round
INCREMENTAL, PROMPT = "ascend::incre_flash_attention", "npu::npu_prompt_flash_attention"


@dataclass(frozen=True)
class Fault:
    """phase: of the step. noticed_by: the check that notices it, "" for none. mutate: plants it."""

    phase: str
    noticed_by: str
    mutate: Mutation
    config: GemmaConfig = steps.BASE


_A2_NORM, _DUO_NORM = "ascend::gemma_rms_norm", "npu::npu_rms_norm"
_CHANGED_HEADS = change_keyword(INCREMENTAL, "num_heads", lambda heads: 2)
_COMMON: dict[str, Fault] = {
    "lost embedding scale": Fault("decode", "attributes", lose_embedding_scale),
    "swapped block table": Fault("decode", "numbers", rows_swapped("block_table")),
    "swapped positions": Fault("decode", "numbers", rows_swapped("positions")),
    "context one token short": Fault("extend", "numbers", shifted("context_lens", -1)),
    "one slot for all": Fault("decode", "interpreter", zero_slots),
    "up activated": Fault("decode", "numbers", set_argument("npu::npu_geglu", 3, False)),
    "sine for cosine": Fault("decode", "numbers", swap_arguments("npu::npu_rotary_mul", 1, 2)),
    "transposed weight": Fault("decode", "copies", transpose_a_weight),
    "weight cast at run time": Fault("decode", "copies", cast_a_weight),
    "copied cache": Fault("decode", "copies", copy_a_cache),
    "one kernel too many": Fault("decode", "kernels", negate_twice),
}
MUTATIONS: dict[str, dict[str, Fault]] = {
    A2: {
        **_COMMON,
        "none": Fault("extend", "", lambda graph: None),
        "wrong softmax scale": Fault("decode", "attributes", change_keyword(FUSED, "scale", halved)),
        "lost 1 + w": Fault("decode", "attributes", lose_norm_offset),
        "wrong eps": Fault("decode", "attributes", set_argument(_A2_NORM, 2, 1e-3)),
        "query lengths lost": Fault("extend", "interpreter", drop_keywords(FUSED, "actual_seq_lengths")),
        "mask lost": Fault("prefill", "numbers", drop_keywords(FUSED, "atten_mask", "sparse_mode")),
        "keys for values": Fault("decode", "numbers", swap_arguments(FUSED, 1, 2)),
        "caches swapped": Fault("decode", "numbers", swap_arguments(SCATTER, 2, 3)),
        "wrong block size": Fault("decode", "interpreter", change_keyword(FUSED, "block_size", lambda size: 32)),
        "window of W + 1 keys": Fault("extend", "attributes", change_keyword(FUSED, "pre_tokens", widened), GEMMA3),
        "window lost in decode": Fault("decode", "attributes", drop_keywords(FUSED, "atten_mask"), GEMMA3),
        "window ignored in decode": Fault("decode", "interpreter", given_as_a_band, GEMMA3),
        "window's blocks one late": Fault("decode", "interpreter", blocks_one_late, GEMMA3),
        "the other pool's blocks": Fault("decode", "numbers", other_pool("block_table"), GEMMA3),
        "the other pool's slots": Fault("decode", "numbers", other_pool("slot_mapping"), GEMMA3),
        "softcap lost": Fault("decode", "attributes", lose_softcap, GEMMA2),
        "softcap behind the mask": Fault("extend", "numbers", cap_after_the_mask, ONE_KV_HEAD),
        "another layer's rotary base": Fault("decode", "numbers", other_layers_base, GEMMA3),
        "norm of heads after rotation": Fault("decode", "numbers", norm_after_rotation, GEMMA3),
    },
    DUO: {
        **_COMMON,
        "none": Fault("decode", "", lambda graph: None),
        "wrong softmax scale": Fault("decode", "attributes", change_keyword(INCREMENTAL, "scale", halved)),
        "wrong scale in prefill": Fault("prefill", "attributes", change_keyword(PROMPT, "scale_value", halved)),
        "lost 1 + w": Fault("decode", "numbers", subtract_norm_offset),
        "wrong eps": Fault("decode", "attributes", set_argument(_DUO_NORM, 2, 1e-3)),
        "mask lost": Fault("prefill", "numbers", drop_keywords(PROMPT, "atten_mask")),
        "mask one token late": Fault("prefill", "numbers", hide_own_token),
        "keys for values": Fault("decode", "numbers", swap_arguments(INCREMENTAL, 1, 2)),
        "keys for values in prefill": Fault("prefill", "numbers", swap_arguments(PROMPT, 1, 2)),
        "caches swapped": Fault("decode", "numbers", swap_scattered_caches),
        "wrong head count": Fault("decode", "interpreter", _CHANGED_HEADS),
        "rotation the other way": Fault("decode", "numbers", rotate_the_other_way, steps.ONE_TO_ONE),
    },
}


def caught(soc: str, step: steps.StepCase, mutate: Mutation) -> str:
    """Which check notices a mutation of the graph that is lowered; "" if none does."""
    graph, expected = step.selected(find_soc(soc)), step.canonical()
    inputs = steps.step_inputs(step)
    caches = steps.filled_caches(step, expected, inputs)
    reference = steps.run_on_cpu(expected, step, inputs, caches)
    mutate(graph)
    graph.clean()
    try:
        check_attributes(graph, "mutation")
    except PassError:
        return "attributes"
    lowered = lower(graph)
    counts = count_nodes(lowered.graph)
    try:
        check_lean(counts, "mutation")
    except AssertionError:
        return "copies"
    try:
        found = steps.run_lowered(lowered, graph, step, inputs, caches)
    except GeGraphError:
        return "interpreter"
    if steps.difference(reference, found) > step.tolerance:
        return "numbers"
    return "kernels" if counts.compute > budget(soc, step) else ""


@cache
def budget(soc: str, step: steps.StepCase) -> int:
    """Kernels of the step without a fault."""
    return count_nodes(lower(step.selected(find_soc(soc))).graph).compute


@pytest.mark.chip
@pytest.mark.parametrize(
    ("soc", "fault"),
    [
        pytest.param(soc, fault, marks=[pytest.mark.slow] if soc == DUO else [], id=f"{name}-{soc}")
        for soc, faults in MUTATIONS.items()
        for name, fault in faults.items()
    ],
)
def test_a_planted_fault_is_noticed_by_its_check(soc: str, fault: Fault) -> None:
    width = (
        3 if fault.config in (GEMMA2, GEMMA3, ONE_KV_HEAD) else steps.WIDTH
    )  # blocks, of which a window leaves out one
    step = steps.StepCase(fault.config, torch.float16, 64, fault.phase, width=width)
    assert caught(soc, step, fault.mutate) == fault.noticed_by


@pytest.mark.parametrize("soc", MUTATIONS)
def test_every_check_notices_some_fault(soc: str) -> None:
    assert {fault.noticed_by for fault in MUTATIONS[soc].values()} >= CATCHERS


@pytest.mark.chip(A2)
def test_scales_of_keys_taken_for_values_are_noticed() -> None:
    def swap(graph: ModelGraph) -> None:
        for call in graph.calls(torch.ops.air.npu_fused_infer_attention_score.default):
            names = ("key_antiquant_scale", "value_antiquant_scale")
            call.kwargs = {**call.kwargs, **dict(zip(names, (call.kwargs[name] for name in names[::-1]), strict=True))}

    assert caught(A2, steps.StepCase(steps.BASE, torch.float16, 64, "decode", kv8=True), swap) == "numbers"
