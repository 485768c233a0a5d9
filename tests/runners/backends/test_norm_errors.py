"""How far norm=exact and norm=fused are from float32 and from transformers: the table of docs/ascend.md.

python -m pytest -s -m slow -k norm_errors tests/runners/backends
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import torchair_steps as steps
from support.checkpoints import CALM, make_model
from support.chip_processes import A2, DUO, on_each_chip

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.runners.backends.ascend.lower import lower

SIX_LAYERS = replace(steps.BASE, num_hidden_layers=6)
SEEDS = range(8)
DTYPES = {A2: (torch.float16, torch.bfloat16), DUO: (torch.float16,)}


@torch.no_grad()
def logits_of_transformers(step: steps.StepCase, dtype: torch.dtype) -> torch.Tensor:
    """The last tokens' logits of the first two rows, in float64; the weights are rounded to the step's dtype."""
    model = make_model(step.config, step.seed, step.dtype, CALM).to(dtype)
    inputs = steps.step_inputs(step)
    rows = [inputs["input_ids"][row, : inputs["query_lens"][row]] for row in range(2)]
    return torch.stack([model(row[None]).logits[0, -1].double() for row in rows])


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.slow
@on_each_chip
def test_norm_errors(soc: str) -> None:
    """Logits of prompts after six layers, over models of random weights."""
    for dtype in DTYPES[soc]:
        found = {}
        for norm in ("exact", "fused"):
            lowered, logits = None, []
            for seed in SEEDS:
                step = steps.StepCase(SIX_LAYERS, dtype, 64, "prefill", norm, seed=seed)
                graph = step.selected(find_soc(soc))
                lowered = lowered or lower(graph)
                inputs = steps.step_inputs(step)
                caches = steps.filled_caches(step, graph, inputs)
                logits.append(steps.run_lowered(lowered, graph, step, inputs, caches).logits.double())
            found[norm] = torch.stack(logits)
        cases = [steps.StepCase(SIX_LAYERS, dtype, 64, "prefill", seed=seed) for seed in SEEDS]
        theirs = torch.stack([logits_of_transformers(case, dtype) for case in cases])
        wide = torch.stack([logits_of_transformers(case, torch.float32) for case in cases])
        name, size = f"{soc}, {str(dtype).removeprefix('torch.')}", rms(wide)
        print(f"{name}: transformers, RMS from float32 {rms(theirs - wide) / size:.2e}")
        errors = {}
        for norm, ours in found.items():
            largest = ((ours - theirs).abs().amax((1, 2)) / theirs.abs().amax((1, 2))).max().item()
            errors[norm] = rms(ours - wide) / size
            print(f"{name}: {norm}, largest from transformers {largest:.2e}, RMS from float32 {errors[norm]:.2e}")
        assert errors["exact"] <= errors["fused"], (name, errors)
        assert errors["exact"] <= 1.25 * rms(theirs - wide) / size, (name, errors)
