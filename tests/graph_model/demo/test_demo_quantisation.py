"""The accuracy table's guard: schemes stay near floating point, and smoothing is what saves a model with outliers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graph_model.demo import CHECKPOINT_DIR
from graph_model.demo.evaluate import load_model
from graph_model.demo.quantisation import Scores, make_outlier_variant, measure_all, table
from graph_model.demo.world import held_out_items, held_out_stories

ITEMS, STORIES = 128, 16


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Scores]]:
    return measure_all(CHECKPOINT_DIR, held_out_items(ITEMS), held_out_stories(STORIES))


def test_every_scheme_is_near_floating_point(results: dict[str, dict[str, Scores]]) -> None:
    reference = results["demo"]["floating point"]
    for scheme in ("w8a8", "w8a8_dynamic", "w8a16", "kv8", "w8a8_dynamic + kv8"):
        scores = results["demo"][scheme]
        assert abs(scores.accuracy - reference.accuracy) <= 0.01, scheme
        assert scores.losses != reference.losses, scheme
        assert abs(scores.perplexity / reference.perplexity - 1) <= 0.01, scheme


def test_outliers_break_naive_quantisation_and_smoothing_recovers(results: dict[str, dict[str, Scores]]) -> None:
    reference = results["outliers"]["floating point"]
    smoothed, naive = results["outliers"]["w8a8"], results["outliers"]["w8a8, naive"]
    assert abs(reference.perplexity / results["demo"]["floating point"].perplexity - 1) <= 1e-4
    assert naive.perplexity > 1.1 * reference.perplexity
    assert abs(smoothed.accuracy - reference.accuracy) <= 0.01
    assert abs(smoothed.perplexity / reference.perplexity - 1) <= 0.01
    text = table(results)
    assert len(text.splitlines()) == 2 + 7 + 3
    assert "±" in text


@torch.no_grad()
def test_the_variant_with_outliers_computes_what_the_demo_does(tmp_path: Path) -> None:
    make_outlier_variant(CHECKPOINT_DIR, tmp_path / "variant")
    ids = torch.arange(40)[None] + 3
    expected, found = (load_model(path)(ids, torch.arange(40)[None]) for path in (CHECKPOINT_DIR, tmp_path / "variant"))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
