"""The residual stream of Gemma 2 and 3 is scaled exactly, so that float16 holds what exceeds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.checkpoints import SENSITIVE, make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS
from support.graphs import BUCKETS, Case, rewrite
from support.overflow import make_loud_model
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.numerics import TOLERANCE
from graph_gemma.graph_model.residual_scale import MOST_EXPONENT
from graph_gemma.graph_model.weights import OnePlus, evaluate
from graph_gemma.passes.framework.attributes import check_attributes
from graph_gemma.passes.framework.contract import Pass, PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.passes.scale_residual import ScaleResidual

HALF = torch.float16
CASES = {name: Case(config.of_layers(range(2)), HALF) for name, config in LATER_CONFIGS.items()}
IDS = torch.randint(3, 256, (2, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("exponent", [1, 5, MOST_EXPONENT])
@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("name", CASES)
def test_scaling_changes_no_number(name: str, bucket: str, exponent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bits in float32, whose range no number of these models leaves."""
    monkeypatch.setattr(ScaleResidual, "idle", lambda self, graph: "")
    case = replace(CASES[name], dtype=torch.float32)
    done = rewrite(ScaleResidual(exponent), case, bucket)
    # Two layers of two norms that read the stream and two of branches, the final norm, the embedding.
    assert done.matches == 2 * 4 + 1 + 1
    assert done.error == 0.0


@pytest.mark.parametrize("exponent", [3, 5, 8])
@pytest.mark.parametrize("name", CASES)
def test_embedding_branches_and_eps_share_one_scale(name: str, exponent: int) -> None:
    case = CASES[name]
    graph = rewrite(ScaleResidual(exponent), case).graph
    assert graph.residual_exponent == exponent
    scale = 2.0**-exponent
    found: dict[str, tuple[float, object]] = {}
    for norm in graph.calls(ops.rms_norm):
        factor = norm.args[1].meta["expression"]
        assert isinstance(factor, OnePlus)
        found[norm.meta["layer"]] = factor.gain, norm.args[2]
    eps = case.config.rms_norm_eps
    kinds = {"post_": (scale, eps), "q_norm": (1.0, eps), "k_norm": (1.0, eps)}
    for path, values in found.items():
        last = path.rpartition(".")[2]
        expected = next((each for kind, each in kinds.items() if last.startswith(kind)), (1.0, eps * scale * scale))
        assert values == expected, path


def pipeline(exponent: int) -> list[Pass]:
    return [ScaleResidual(exponent) if cls is ScaleResidual else cls() for cls in DEFAULT_PASSES]


@pytest.mark.parametrize(
    ("case", "exponent", "reason"),
    [
        (replace(CASES["gemma3"], dtype=torch.bfloat16), 5, "the dtype holds the residual stream"),
        (CASES["gemma3"], 0, "exponent is 0"),
        (Case(TINY_CONFIGS["one_kv_head"], HALF), 5, "without a norm"),
    ],
)
def test_it_is_left_out_where_it_is_not_needed_or_not_exact(case: Case, exponent: int, reason: str) -> None:
    graph = case.captured()
    assert reason in ScaleResidual(exponent).idle(graph)
    run_passes(graph, pipeline(exponent))
    assert "scale_residual" not in graph.matches
    assert graph.residual_exponent == 0


@pytest.mark.parametrize("exponent", [-1, MOST_EXPONENT + 1, 64])
def test_an_exponent_that_makes_no_sense_is_refused(exponent: int) -> None:
    message = rf"passes\.scale_residual\.exponent is {exponent}; it must be an integer of at least 0 and at most 10\."
    with pytest.raises(UserError, match=message):
        ScaleResidual(exponent)


def rewritten(config: Any, exponent: int) -> ModelGraph:
    graph = capture(config, BUCKETS["prefill"], KVCacheConfig(8, 16), HALF)
    run_passes(graph, pipeline(exponent))
    graph.set_outputs(graph.outputs[0].args[0])  # type: ignore[arg-type]
    graph.clean()
    return graph


def logits(graph: ModelGraph, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    tensors = evaluate(graph.weight_plan.values(), weights.__getitem__, torch.device("cpu"))
    inputs = {
        "input_ids": ids,
        "positions": torch.arange(8).expand(2, 8),
        "slot_mapping": torch.arange(16).view(2, 8) + 16,
        "window_slot_mapping": torch.arange(16).view(2, 8) + 48,
        "query_lens": torch.tensor([8, 8]),
    }
    caches = [torch.zeros(node.meta["val"].shape, dtype=HALF) for node in graph.placeholders("cache")]
    arguments = [*(tensors[each] for each in graph.weight_plan.values()), *caches]
    found: Tensor = graph.module(*arguments, *(inputs[node.name] for node in graph.placeholders("input")))[0]
    return found.float()


def model_of(name: str, branch_factor: float | None = None) -> tuple[Any, dict[str, Tensor]]:
    """A random model with weights of float16. branch_factor: of the norms after branches; None: random ones."""
    config = CASES[name].config
    model = make_model(config, gains=SENSITIVE) if branch_factor is None else make_loud_model(config, branch_factor)
    weights = {name: value.to(HALF) for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model, weights


@pytest.mark.parametrize("exponent", [0, 3, 8])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_float16_is_as_near_to_float32_with_any_exponent(name: str, exponent: int) -> None:
    model, weights = model_of(name)
    expected = model(IDS).logits[:, -1]
    found = logits(rewritten(CASES[name].config, exponent), weights, IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[HALF] * float(expected.abs().max()))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_stream_beyond_float16_gives_the_tokens_of_float32(name: str) -> None:
    """Branches that add up to more than float16 holds, as those of real Gemma 3 do."""
    model, weights = model_of(name, branch_factor=30000.0)
    expected = model(IDS).logits[:, -1]
    for exponent in (0, 3, 8):
        found = logits(rewritten(CASES[name].config, exponent), weights, IDS)
        if exponent == 0:
            assert not found.isfinite().all()
            continue
        assert torch.equal(found.argmax(-1), expected.argmax(-1))
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_a_branch_that_keeps_its_size_is_noticed() -> None:
    graph = rewrite(ScaleResidual(), CASES["gemma3"]).graph
    branch = next(n for n in graph.calls(ops.rms_norm) if "post_attention" in n.meta["layer"])
    factor = branch.args[1].meta["expression"]
    branch.args = (branch.args[0], graph.add_weight("as_it_was", replace(factor, gain=1.0)), branch.args[2])
    graph.clean()
    with pytest.raises(PassError, match=r"residual_scale = 0\.03125 is carried by 3 nodes"):
        check_attributes(graph, "a fault")
