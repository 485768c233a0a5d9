"""phase=compile and phase=host: what their parts add up to."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from graph_gemma.runners.benchmarking.host import measure_host
from graph_gemma.runners.benchmarking.start_up import cold_and_warm, measure_start
from graph_gemma.runners.benchmarking.timing import Case
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.settings.model_settings import ModelSettings, resolve_settings


def model(checkpoint: Path, cache: Path, *settings: str) -> ModelSettings:
    return resolve_settings(compose("infer", [f"model.path={checkpoint}", f"cache_dir={cache}", *settings]))


def test_the_parts_of_a_start_are_within_it(checkpoint: Path, tmp_path: Path) -> None:
    settings = model(checkpoint, tmp_path, "backend=eager", "max_batch_size=1", "max_prefill_batch_size=1")
    found = measure_start("cold", settings, [Case(1, 8, 4)], time.time() - 2.0)
    assert 2.0 <= found.process_s < 3.0
    assert found.steps == 2  # the prompt's and the answer's
    assert found.from_cache == 0
    assert found.capture_s > 0
    assert found.passes_s > 0
    assert 0 < found.rest_s < found.ready_s
    parts = [float(found.cells("m")[name]) for name in found.cells("m") if name.endswith("(s)")]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.01)


@pytest.mark.slow
def test_a_warm_start_finds_every_step_of_the_cold_one(checkpoint: Path, tmp_path: Path) -> None:
    settings = model(checkpoint, tmp_path, "backend=inductor")
    cold, warm = cold_and_warm(SimpleNamespace(model=settings, cases=[Case(1, 8, 4)]))  # type: ignore[arg-type]
    assert (cold.kind, cold.from_cache) == ("cold", 0)
    assert (warm.kind, warm.from_cache) == ("warm", cold.steps)
    assert warm.capture_s == warm.passes_s == 0.0
    assert cold.capture_s > 0
    assert warm.lowering_s < cold.lowering_s
    assert warm.ready_s < cold.ready_s
    assert not list(tmp_path.iterdir())  # it has a cache of its own


def test_the_host_time_is_what_a_step_takes_beside_its_function(checkpoint: Path, tmp_path: Path) -> None:
    settings = model(checkpoint, tmp_path, "backend=eager")
    cases = [Case(1, 8, 6), Case(2, 8, 6)]
    request = SimpleNamespace(model=settings, cases=cases, repeats=2)
    for case, found in zip(cases, measure_host(request), strict=True):  # type: ignore[arg-type]
        assert found.case == case
        assert len(found.step_s) <= 2 * 5  # two repeats; the run before them does not count
        assert len(found.step_s) >= 2 * 4
        assert all(0 < outside < step for outside, step in zip(found.outside_s, found.step_s, strict=True))
