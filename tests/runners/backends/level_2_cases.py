"""Level 2: what the interpreter computes from the lowered graph, what the CPU kernels compute from the graph that was
lowered, and the canonical graph that it was made from. Faults planted into the graph are noticed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from full_size_cases import check_lean  # isort: skip
from support import torchair_steps as steps  # isort: skip
from support.configs import TINY_CONFIGS
from support.standin_cases import A2, DUO, Case, Cases
from torchair_mutations import MUTATIONS, Mutation

from graph_model.ascend.ge_graph import GeGraphError
from graph_model.chips.registry import find_soc
from graph_model.graph import ModelGraph
from graph_model.numerics import TOLERANCE
from passes.framework.attributes import check_attributes
from passes.framework.contract import PassError
from runners.backends.ascend.lower import lower
from runners.backends.ascend.printer import count_nodes

CASES = Cases()
CATCHERS = ("attributes", "copies", "interpreter", "numbers", "kernels")
HALF, BRAIN = torch.float16, torch.bfloat16
PHASES = ("prefill", "extend", "decode")
DECOMPOSED = replace(steps.BASE, num_attention_heads=8, num_key_value_heads=1, head_dim=256)
GROUPED = replace(steps.BASE, num_attention_heads=4, num_key_value_heads=2, head_dim=256)
WIDE_GROUPS = replace(steps.BASE, num_attention_heads=8, num_key_value_heads=2, head_dim=144)
ONE_TO_ONE = replace(steps.BASE, num_attention_heads=2, num_key_value_heads=2, head_dim=256)
BIASED = replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=2)
UNTIED = replace(TINY_CONFIGS["untied_head"], num_hidden_layers=2)


def tolerance(step: steps.StepCase) -> float:
    """Largest difference that rounding may make, relative to the largest logit."""
    if step.scheme in (None, "w8a16") and not step.kv8:
        return TOLERANCE[step.dtype]
    # One unit of an int8 activation moves logits of a small random model by more than rounding does; a fused norm in
    # bfloat16 rounds 1 + w to as few bits as an int8 has, and so moves many by one.
    return 0.15 if (step.dtype, step.norm) == (BRAIN, "fused") else 0.1


def level_2(soc: str, step: steps.StepCase) -> None:
    canonical, selected = step.canonical(), step.selected(find_soc(soc))
    inputs = steps.step_inputs(step)
    caches = steps.filled_caches(step, canonical, inputs)
    expected = steps.run_on_cpu(canonical, step, inputs, caches)
    on_cpu = steps.run_on_cpu(selected, step, inputs, caches)
    lowered = steps.run_lowered(lower(selected), selected, step, inputs, caches)
    bound = tolerance(step)
    errors = [steps.difference(a, b) for a, b in ((expected, on_cpu), (on_cpu, lowered), (expected, lowered))]
    assert max(errors) <= bound, f"{step}: {errors}, allowed {bound}"


def register_level_2(soc: str, name: str, *cases: steps.StepCase, slow: bool = False) -> None:
    def run(folder: Path) -> None:
        for step in cases:
            level_2(soc, step)

    CASES[f"{name}_on_{soc}"] = Case(soc, run, slow)


for _dtype in (HALF, BRAIN):
    for _size in (64, 128):
        register_level_2(
            A2,
            f"graph_{_dtype}_blocks_of_{_size}".replace("torch.", ""),
            *(steps.StepCase(steps.BASE, _dtype, _size, phase) for phase in PHASES),
            slow=(_dtype, _size) not in ((HALF, 64), (BRAIN, 128)),
        )
for _soc in (A2, DUO):
    for _name, _config in {"biased": BIASED, "untied": UNTIED}.items():
        register_level_2(
            _soc, f"graph_{_name}", *(steps.StepCase(_config, HALF, 64, phase) for phase in PHASES), slow=True
        )
    register_level_2(
        _soc, "graph_fused_norm", steps.StepCase(steps.BASE, HALF, 64, "decode", "fused"), slow=_soc == DUO
    )
register_level_2(DUO, "graph_blocks_of_64", *(steps.StepCase(steps.BASE, HALF, 64, phase) for phase in PHASES))
register_level_2(
    DUO, "graph_blocks_of_128", *(steps.StepCase(steps.BASE, HALF, 128, phase) for phase in PHASES), slow=True
)
for _name, _config in {"decomposed": DECOMPOSED, "grouped": GROUPED, "wide_groups": WIDE_GROUPS}.items():
    register_level_2(DUO, f"graph_{_name}_decode", steps.StepCase(_config, HALF, 64, "decode"))
for _name, _config in {"grouped": GROUPED, "one_to_one": ONE_TO_ONE}.items():
    for _soc in (A2, DUO):
        register_level_2(
            _soc, f"graph_{_name}", *(steps.StepCase(_config, HALF, 64, phase) for phase in PHASES), slow=True
        )


for _soc, _dtype, _scheme, _norm, _phases, _slow in (
    (A2, HALF, "w8a8", "exact", ("prefill", "decode"), False),
    (A2, BRAIN, "w8a8", "fused", ("decode",), True),
    (A2, BRAIN, "w8a8_dynamic", "exact", ("decode",), False),
    (A2, HALF, "w8a8_dynamic", "fused", ("extend",), True),
    (A2, HALF, "w8a16", "exact", ("decode",), False),
    (DUO, HALF, "w8a8", "exact", ("decode",), False),
    (DUO, HALF, "w8a16", "fused", ("decode",), True),
):
    register_level_2(
        _soc,
        f"graph_{_scheme}_{_dtype}_{_norm}".replace("torch.", ""),
        *(steps.StepCase(steps.BASE, _dtype, 64, phase, _norm, _scheme) for phase in _phases),
        slow=_slow,
    )

for _soc in (A2, DUO):  # a head in two parts
    many_rows = steps.StepCase(replace(steps.BASE, vocab_size=70001), HALF, 64, "decode", scheme="w8a16")
    register_level_2(_soc, "graph_w8a16_head_of_70001_rows", many_rows, slow=_soc == DUO)


for _name, _config, _dtype, _scheme, _slow in (
    ("one_key_head", steps.BASE, HALF, None, False),
    ("grouped", GROUPED, BRAIN, "w8a8_dynamic", True),
):
    register_level_2(
        A2,
        f"graph_int8_cache_{_name}",
        *(steps.StepCase(_config, _dtype, 64, phase, scheme=_scheme, kv8=True) for phase in PHASES),
        slow=_slow,
    )


@CASES.add(A2)
def scales_of_keys_taken_for_values_are_noticed(folder: Path) -> None:
    def swap(graph: ModelGraph) -> None:
        for call in graph.calls(torch.ops.air.npu_fused_infer_attention_score.default):
            names = ("key_antiquant_scale", "value_antiquant_scale")
            call.kwargs = {**call.kwargs, **dict(zip(names, (call.kwargs[name] for name in names[::-1]), strict=True))}

    assert caught(A2, steps.StepCase(steps.BASE, HALF, 64, "decode", kv8=True), swap) == "numbers"


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
    if steps.difference(reference, found) > tolerance(step):
        return "numbers"
    return "kernels" if counts.compute > budget(soc, step) else ""


@cache
def budget(soc: str, step: steps.StepCase) -> int:
    """Kernels of the step without a fault."""
    return count_nodes(lower(step.selected(find_soc(soc))).graph).compute


def check_mutations(soc: str) -> None:
    unnoticed = {}
    for name, fault in MUTATIONS[soc].items():
        found = caught(soc, steps.StepCase(fault.config, HALF, 64, fault.phase), fault.mutate)
        if found != fault.noticed_by:
            unnoticed[name] = f"{found or 'nothing'} instead of {fault.noticed_by}"
    assert not unnoticed, unnoticed
    assert {fault.noticed_by for fault in MUTATIONS[soc].values()} >= {*CATCHERS}


for _soc in (A2, DUO):
    CASES[f"every_mutation_is_noticed_on_{_soc}"] = Case(
        _soc, lambda folder, soc=_soc: check_mutations(soc), slow=_soc == DUO
    )
