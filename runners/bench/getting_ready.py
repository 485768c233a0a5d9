"""phase=compile: what it costs until a model can run, without and with the compile cache."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.compile import CompiledModel, Recipe
from runners.bench.request import Request
from runners.bench.timing import random_prompts
from runners.engine.sampling_params import SamplingParams
from runners.llm import LLM
from runners.settings import ModelSettings
from runners.warm_up import reachable_buckets


def getting_ready(request: Request) -> list[str]:
    """A line per phase. Cold and warm include reading the weights; the cache is a temporary one."""
    case = request.cases[0]
    prompts = random_prompts(case, request.model.config.vocab_size, seed=0)
    sampling = SamplingParams(max_new_tokens=case.answer)
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as directory:
        settings = replace(request.model, cache_dir=Path(directory))
        cold_s, model = _ready(settings, prompts, sampling)
        warm_s, _ = _ready(settings, prompts, sampling)
    buckets = reachable_buckets(model, prompts, sampling, once=True)
    capture_s, passes_s = _rewriting(model.recipe, buckets)
    return [
        f"capture:                {capture_s:8.2f} s for {len(buckets)} steps",
        f"passes:                 {passes_s:8.2f} s for {len(buckets)} steps",
        f"ready to run, cold:     {cold_s:8.2f} s (capture, passes, lowering and weights)",
        f"ready to run, warm:     {warm_s:8.2f} s (steps from the cache, and weights)",
    ]


def _ready(settings: ModelSettings, prompts: list[list[int]], sampling: SamplingParams) -> tuple[float, CompiledModel]:
    """Seconds until the prompts can be answered, and the model."""
    start = time.perf_counter()
    with LLM(settings) as llm:
        llm.warm_up(prompts, sampling, once=True)
        return time.perf_counter() - start, llm.loaded.model


def _rewriting(recipe: Recipe, buckets: list[Bucket]) -> tuple[float, float]:
    """Seconds that capture takes for all buckets, and the passes."""
    capture_s = graph_s = 0.0
    for bucket in buckets:
        start = time.perf_counter()
        capture(recipe.config, bucket, recipe.pages, recipe.dtype)
        captured = time.perf_counter()
        recipe.graph(bucket)
        capture_s += captured - start
        graph_s += time.perf_counter() - captured
    return capture_s, max(0.0, graph_s - capture_s)
