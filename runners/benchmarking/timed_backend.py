"""A backend whose lowering and whose steps are timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.runners.backends.base import Backend, StepFunction
from graph_gemma.runners.compile import Recipe


class TimedBackend:
    """Measures the time that `backend` takes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name
        self.leaves_artifacts = backend.leaves_artifacts
        self.device = backend.device
        self.lowering_s = 0.0  # seconds in `compile` and `load`
        self.runs: list[float] = []  # seconds of each call of a step function, until the device has finished

    def fingerprint(self) -> dict[str, Any]:
        return self._backend.fingerprint()

    def kernel_passes(self, dtype: torch.dtype, scheme: Scheme | None = None) -> tuple[Pass, ...]:
        return self._backend.kernel_passes(dtype, scheme)

    def compile(self, graph: ModelGraph, arguments: Sequence[Tensor], artifact: Path | None) -> StepFunction:
        start = time.perf_counter()
        function = self._backend.compile(graph, arguments, artifact)
        self.lowering_s += time.perf_counter() - start
        return self._timed(function)

    def load(self, artifact: Path) -> StepFunction | None:
        start = time.perf_counter()
        function = self._backend.load(artifact)
        self.lowering_s += time.perf_counter() - start
        return None if function is None else self._timed(function)

    def _timed(self, function: StepFunction) -> StepFunction:
        def run(*arguments: Tensor) -> Sequence[Tensor]:
            start = time.perf_counter()
            outputs = function(*arguments)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.runs.append(time.perf_counter() - start)
            return outputs

        return run


@dataclass(frozen=True)
class TimedRecipe(Recipe):
    """A recipe that adds up the seconds of its `capture` and `passes`."""

    seconds: dict[str, float] = field(default_factory=lambda: {"capture": 0.0, "passes": 0.0})

    def graph(self, bucket: Bucket) -> ModelGraph:
        start = time.perf_counter()
        graph = capture(self.config, bucket, self.cache_config, self.dtype, self.quantization)
        captured = time.perf_counter()
        run_passes(graph, self.passes, self.dump_dir, self.observe)
        self.seconds["capture"] += captured - start
        self.seconds["passes"] += time.perf_counter() - captured
        return graph


def timed_recipe(recipe: Recipe) -> tuple[TimedRecipe, TimedBackend]:
    """The recipe with everything timed; its cache key is the recipe's own."""
    backend = TimedBackend(recipe.backend)
    values = {part.name: getattr(recipe, part.name) for part in fields(recipe)}
    return TimedRecipe(**{**values, "backend": backend}), backend
