"""phase=compile: start-up time until all steps can run, without and with the compile cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from graph_gemma.runners.benchmarking.engine_runner import warm_up
from graph_gemma.runners.benchmarking.request import Request
from graph_gemma.runners.benchmarking.timed_backend import timed_recipe
from graph_gemma.runners.benchmarking.timing import Case
from graph_gemma.runners.benchmarking.worker import in_new_process
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.settings.model_settings import ModelSettings


@dataclass(frozen=True)
class StartUp:
    """A start, with its times in seconds."""

    kind: str  # cold or warm
    backend: str  # its description
    steps: int
    from_cache: int  # of the steps
    process_s: float  # until Python and torch are imported
    capture_s: float
    passes_s: float
    lowering_s: float  # the backend's work, or loading what it left in the cache
    ready_s: float  # from the start of the process until every step can run

    @property
    def rest_s(self) -> float:
        """Reading weights, and everything else."""
        return self.ready_s - self.process_s - self.capture_s - self.passes_s - self.lowering_s

    def cells(self, model: str) -> dict[str, str]:
        """Column -> text."""
        return {
            "Model": model,
            "Start": self.kind,
            "Steps": str(self.steps),
            "From cache": str(self.from_cache),
            "Process(s)": f"{self.process_s:.3f}",
            "Capture(s)": f"{self.capture_s:.3f}",
            "Passes(s)": f"{self.passes_s:.3f}",
            "Lowering(s)": f"{self.lowering_s:.3f}",
            "Weights and rest(s)": f"{self.rest_s:.3f}",
            "Ready(s)": f"{self.ready_s:.3f}",
            "Backend": self.backend,
        }

    def line(self) -> str:
        return (
            f"{self.kind}: ready after {self.ready_s:.2f} s, with {self.steps} steps of which {self.from_cache} from "
            f"the cache: process {self.process_s:.2f}, capture {self.capture_s:.2f}, passes {self.passes_s:.2f}, "
            f"lowering {self.lowering_s:.2f}, weights and rest {self.rest_s:.2f}"
        )


def cold_and_warm(request: Request) -> list[StartUp]:
    """Start twice, each time in a new process: with an empty compile cache, and with what the first start left."""
    found = []
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as directory:
        settings = replace(request.model, cache_dir=Path(directory) / "cache")
        for kind in ("cold", "warm"):
            start = partial(measure_start, kind, settings, request.cases, time.time())
            found.append(in_new_process(f"{kind} start", start))
    return found


def measure_start(kind: str, settings: ModelSettings, cases: Sequence[Case], started: float) -> StartUp:
    """Make everything ready in this process, which was started at `started` (time.time())."""
    process_s = time.time() - started
    with LLM(settings) as llm:
        model = llm.loaded.model
        model.recipe, backend = timed_recipe(model.recipe)
        warm_up(llm, cases)
        return StartUp(
            kind=kind,
            backend=llm.loaded.backend,
            steps=model.report.compiled + model.report.from_cache,
            from_cache=model.report.from_cache,
            process_s=process_s,
            capture_s=model.recipe.seconds["capture"],
            passes_s=model.recipe.seconds["passes"],
            lowering_s=backend.lowering_s,
            ready_s=time.time() - started,
        )
