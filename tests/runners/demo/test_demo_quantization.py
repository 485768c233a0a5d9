"""The accuracy table's guard: schemes stay near floating point, and smoothing is what saves a model with outliers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.training.evaluate import load_model
from graph_gemma.runners.demo.training.quantization import (
    Scores,
    accuracy_difference,
    make_outlier_variant,
    measure_all,
    perplexity_difference,
)
from graph_gemma.runners.demo.world import held_out_items, held_out_stories

ITEMS, STORIES = 64, 12


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Scores]]:
    return measure_all(CHECKPOINT_DIR, held_out_items(ITEMS), held_out_stories(STORIES))


SCHEMES = ("w8a8", "w8a8_dynamic", "w8a16", "kv8", "w8a8 + kv8", "w8a8_dynamic + kv8", "w8a16 + kv8")


def require_near(scores: Scores, reference: Scores, what: str) -> None:
    """Accuracy within one point of the reference's and perplexity within one per cent, at the ends of the intervals."""
    for difference, half in (accuracy_difference(scores, reference), perplexity_difference(scores, reference)):
        assert abs(difference) + half <= 1.0, (what, difference, half)


@pytest.mark.slow
def test_every_scheme_is_near_floating_point(results: dict[str, dict[str, Scores]]) -> None:
    reference = results["demo"]["floating point"]
    assert set(results["demo"]) == {"floating point", "w8a8, naive", *SCHEMES}
    for scheme in SCHEMES:
        scores = results["demo"][scheme]
        require_near(scores, reference, scheme)
        assert scores.losses != reference.losses, scheme


@pytest.mark.slow
def test_smoothing_recovers_what_outliers_break(results: dict[str, dict[str, Scores]]) -> None:
    reference = results["outliers"]["floating point"]
    assert abs(reference.perplexity / results["demo"]["floating point"].perplexity - 1) <= 1e-4
    require_near(results["outliers"]["w8a8"], reference, "smoothed")
    lost, half = accuracy_difference(results["outliers"]["w8a8, naive"], reference)
    assert lost + half <= -5.0, (lost, half)
    grown, half = perplexity_difference(results["outliers"]["w8a8, naive"], reference)
    assert grown - half >= 10.0, (grown, half)


def test_the_table_in_docs_has_the_schemes_near_floating_point() -> None:
    text = (Path(__file__).parents[3] / "docs" / "quantization.md").read_text(encoding="utf-8")
    lines = text.partition("<!-- table: begin -->")[2].partition("<!-- table: end -->")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[1] for row in rows if row[0] == "outliers"] == ["floating point", "w8a8", "w8a8, naive"]
    documented = {row[1] for row in rows if row[0] == "demo"}
    assert documented == {"floating point", "w8a8, naive", *SCHEMES}
    for model, scheme, _, accuracy, *_ in rows:
        if scheme == "floating point":
            continue
        points, half = map(float, accuracy.split(" ± "))
        naive = (model, scheme) == ("outliers", "w8a8, naive")
        assert points + half <= -5.0 if naive else abs(points) + half <= 1.0, (model, scheme, accuracy)


@torch.no_grad()
def test_the_variant_with_outliers_computes_what_the_demo_does(tmp_path: Path) -> None:
    make_outlier_variant(CHECKPOINT_DIR, tmp_path / "variant")
    ids = torch.arange(40)[None] + 3
    expected, found = (load_model(path)(ids, torch.arange(40)[None]) for path in (CHECKPOINT_DIR, tmp_path / "variant"))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
