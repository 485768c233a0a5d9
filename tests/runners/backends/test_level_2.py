"""Level 2: what the interpreter computes from the lowered graph, what the CPU kernels compute from the graph that was
lowered, and the canonical graph that it was made from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import torchair_steps as steps
from support.chip_processes import A2, DUO
from support.torchair_steps import (
    BASE,
    BIASED,
    DECOMPOSED,
    GEMMA2,
    GEMMA3,
    GROUPED,
    ONE_TO_ONE,
    UNTIED,
    WIDE_GROUPS,
    StepCase,
)

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.runners.backends.ascend.lower import lower

HALF, BRAIN = torch.float16, torch.bfloat16
PHASES = ("prefill", "extend", "decode")
FOLDED_GEMMA3 = replace(GEMMA3, head_dim=256, num_key_value_heads=2)
MANY_ROWS = replace(BASE, vocab_size=70001)  # a head in two parts


def case(soc: str, name: str, *steps: StepCase, slow: bool = False) -> object:
    return pytest.param(soc, steps, marks=[pytest.mark.slow] if slow else [], id=f"{name}-{soc}")


def phases(config: GemmaConfig, dtype: torch.dtype = HALF, block_size: int = 64, **others: object) -> list[StepCase]:
    return [StepCase(config, dtype, block_size, phase, **others) for phase in PHASES]  # type: ignore[arg-type]


CASES = [
    case(A2, "float16 blocks of 64", *phases(BASE)),
    case(A2, "float16 blocks of 128", *phases(BASE, block_size=128), slow=True),
    case(A2, "bfloat16 blocks of 64", *phases(BASE, BRAIN), slow=True),
    case(A2, "bfloat16 blocks of 128", *phases(BASE, BRAIN, 128)),
    case(DUO, "blocks of 64", *phases(BASE)),
    case(DUO, "blocks of 128", *phases(BASE, block_size=128), slow=True),
    case(A2, "fused norm", StepCase(BASE, HALF, 64, "decode", "fused")),
    case(DUO, "fused norm", StepCase(BASE, HALF, 64, "decode", "fused"), slow=True),
    case(DUO, "decomposed decode", StepCase(DECOMPOSED, HALF, 64, "decode")),
    case(DUO, "grouped decode", StepCase(GROUPED, HALF, 64, "decode")),
    case(DUO, "wide groups decode", StepCase(WIDE_GROUPS, HALF, 64, "decode")),
    *(
        case(soc, name, *phases(config), slow=True)
        for soc in (A2, DUO)
        for name, config in (("biased", BIASED), ("untied", UNTIED), ("grouped", GROUPED), ("one-to-one", ONE_TO_ONE))
    ),
    case(A2, "w8a8", *(StepCase(BASE, HALF, 64, phase, scheme="w8a8") for phase in ("prefill", "decode"))),
    case(A2, "w8a8 bfloat16 fused", StepCase(BASE, BRAIN, 64, "decode", "fused", "w8a8"), slow=True),
    case(A2, "w8a8_dynamic bfloat16", StepCase(BASE, BRAIN, 64, "decode", scheme="w8a8_dynamic")),
    case(A2, "w8a8_dynamic fused", StepCase(BASE, HALF, 64, "extend", "fused", "w8a8_dynamic"), slow=True),
    case(A2, "w8a16", StepCase(BASE, HALF, 64, "decode", scheme="w8a16")),
    case(DUO, "w8a8", StepCase(BASE, HALF, 64, "decode", scheme="w8a8")),
    case(DUO, "w8a16 fused", StepCase(BASE, HALF, 64, "decode", "fused", "w8a16"), slow=True),
    case(A2, "w8a16 head of 70001 rows", StepCase(MANY_ROWS, HALF, 64, "decode", scheme="w8a16")),
    case(DUO, "w8a16 head of 70001 rows", StepCase(MANY_ROWS, HALF, 64, "decode", scheme="w8a16"), slow=True),
    case(A2, "int8 cache one key head", *phases(BASE, kv8=True)),
    case(A2, "gemma3", *phases(GEMMA3, width=3)),
    case(A2, "gemma3 bfloat16 blocks of 128", *phases(GEMMA3, BRAIN, 128), slow=True),
    case(A2, "gemma3 fused norm", *phases(GEMMA3, norm="fused"), slow=True),
    case(A2, "gemma3 int8 cache", *phases(GEMMA3, kv8=True, width=3), slow=True),
    case(A2, "gemma3 w8a8", *phases(GEMMA3, scheme="w8a8"), slow=True),
    case(A2, "gemma2", *phases(GEMMA2, width=3)),
    case(A2, "gemma2 bfloat16", *phases(GEMMA2, BRAIN), slow=True),
    case(A2, "gemma2 int8 cache", *phases(GEMMA2, kv8=True), slow=True),
    case(A2, "gemma2 w8a8_dynamic", *phases(GEMMA2, scheme="w8a8_dynamic"), slow=True),
    case(DUO, "gemma3", *phases(GEMMA3, width=3)),
    case(DUO, "gemma3 folded fused", *phases(FOLDED_GEMMA3, norm="fused", width=3), slow=True),
    case(DUO, "gemma3 decomposed", StepCase(replace(GEMMA3, head_dim=256), HALF, 64, "decode", width=3), slow=True),
    case(DUO, "gemma2", *phases(GEMMA2, width=3), slow=True),
    case(A2, "int8 cache grouped", *phases(GROUPED, BRAIN, scheme="w8a8_dynamic", kv8=True), slow=True),
]


@pytest.mark.chip
@pytest.mark.parametrize(("soc", "cases"), CASES)
def test_lowered_selected_and_canonical_graphs_agree(soc: str, cases: list[StepCase]) -> None:
    for step in cases:
        canonical, selected = step.canonical(), step.selected(find_soc(soc))
        inputs = steps.step_inputs(step)
        caches = steps.filled_caches(step, canonical, inputs)
        expected = steps.run_on_cpu(canonical, step, inputs, caches)
        on_cpu = steps.run_on_cpu(selected, step, inputs, caches)
        lowered = steps.run_lowered(lower(selected), selected, step, inputs, caches)
        errors = [steps.difference(a, b) for a, b in ((expected, on_cpu), (on_cpu, lowered), (expected, lowered))]
        assert max(errors) <= step.tolerance, step
