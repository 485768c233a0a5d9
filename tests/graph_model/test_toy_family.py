"""docs/recipes.md, "A family": a toy family in one file is captured, rewritten under every contract and checked."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from support.configs import TINY_CONFIGS
from support.graphs import BUCKETS, KV_CACHE
from toy_family import Toy, ToyConfig, ToyForCausalLM

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.checkpoint import expected_tensors
from graph_gemma.graph_model.families import FAMILIES, family_of
from graph_gemma.graph_model.quantization.linears import linear_paths
from graph_gemma.passes.check import check_passes
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES

LAYERS = 2
CONFIG = ToyConfig(**{**asdict(TINY_CONFIGS["grouped_kv_heads"]), "num_hidden_layers": LAYERS})
PASSES = [cls() for cls in DEFAULT_PASSES]


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in expected_tensors(CONFIG).items()}


def test_its_description_is_that_of_its_definition() -> None:
    family = family_of(CONFIG)
    assert isinstance(family, Toy)
    with torch.device("meta"):
        parameters = dict(family.model().named_parameters())
    assert list(expected_tensors(CONFIG)) == list(parameters)
    assert expected_tensors(CONFIG) == {name: tuple(p.shape) for name, p in parameters.items()}
    assert len(linear_paths(CONFIG)) == 7 * LAYERS + 1


@pytest.mark.parametrize("window", [None, 3])
def test_every_pass_holds_its_contract_and_its_tier(window: int | None) -> None:
    buckets = [BUCKETS["extend"], BUCKETS["decode"]]
    config = replace(CONFIG, window=window)
    comparisons = check_passes(config, torch.float32, PASSES, random_weights().__getitem__, buckets)
    assert {c.graph_pass.name for c in comparisons} >= {"rms_norm", "rotary", "paged_attention", "add_rms_norm"}


def test_norms_of_heads_are_found_because_the_family_counts_them() -> None:
    graph = capture(CONFIG, BUCKETS["decode"], KV_CACHE, torch.bfloat16)
    run_passes(graph, PASSES)
    norms = graph.calls(ops.rms_norm)
    assert len(norms) == 2 * LAYERS + 1
    assert [n.meta["layer"].rpartition(".")[2] for n in norms[1:]] == ["q_norm", "k_norm"] * LAYERS
    assert len(graph.calls(ops.add_rms_norm)) == 2 * LAYERS


def test_a_description_without_them_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, ToyConfig, Toy)
    family_of.cache_clear()
    layers = family_of(CONFIG).layers
    plain = family_of(TINY_CONFIGS["grouped_kv_heads"]).layers[0]
    family_of.cache_clear()
    monkeypatch.setattr(Toy, "describe_layers", lambda self: (plain,) * LAYERS)
    monkeypatch.setattr(Toy, "model", lambda self: ToyForCausalLM(CONFIG, layers))
    try:
        with pytest.raises(PassError, match=rf"norm_eps = .* is carried by {4 * LAYERS + 1} nodes"):
            run_passes(capture(CONFIG, BUCKETS["decode"], KV_CACHE, torch.float32), PASSES)
    finally:
        family_of.cache_clear()


def test_its_window_reaches_the_last_graph() -> None:
    graph = capture(replace(CONFIG, window=3), BUCKETS["decode"], KV_CACHE, torch.float32)
    run_passes(graph, PASSES)
    assert [node.kwargs for node in graph.calls(ops.paged_attention)] == [{}, {"window": 3}]


def test_layers_of_two_kinds_stand_for_the_others() -> None:
    config = replace(CONFIG, window=3, num_hidden_layers=7)
    few = family_of(config).few_layers()
    assert [each.rest for each in few.more] == [2, 2]  # four full and three sliding; the smallest has two and one
    assert few.base.num_hidden_layers == 3


def test_the_recipe_touches_at_most_eight_files() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = text.partition("## A family\n")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. `([^`]+)`", section, flags=re.MULTILINE)
    assert 0 < len(files) <= 8
    root = Path(__file__).parents[2]
    assert all("NAME" in name or (root / name).exists() for name in files)
