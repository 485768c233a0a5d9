"""phase=compile: what it costs until a model can run, without and with the compile cache."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from graph_model.capture import capture
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
        cold_s, captured = _ready(settings, prompts, sampling)
        warm_s, _ = _ready(settings, prompts, sampling)
    buckets, capture_s, passes_s = captured
    return [
        f"capture:                {capture_s:8.2f} s for {buckets} steps",
        f"passes:                 {passes_s:8.2f} s for {buckets} steps",
        f"ready to run, cold:     {cold_s:8.2f} s (capture, passes, lowering and weights)",
        f"ready to run, warm:     {warm_s:8.2f} s (steps from the cache, and weights)",
    ]


def _ready(
    settings: ModelSettings, prompts: list[list[int]], sampling: SamplingParams
) -> tuple[float, tuple[int, float, float]]:
    start = time.perf_counter()
    with LLM(settings) as llm:
        llm.warm_up(prompts, sampling)
        ready_s = time.perf_counter() - start
        model = llm.loaded.model
    recipe = model.recipe
    buckets = reachable_buckets(model, prompts, sampling.max_new_tokens, sample=False)
    capture_s = graph_s = 0.0
    for bucket in buckets:
        start = time.perf_counter()
        capture(recipe.config, bucket, recipe.pages, recipe.dtype)
        captured = time.perf_counter()
        recipe.graph(bucket)
        capture_s += captured - start
        graph_s += time.perf_counter() - captured
    return ready_s, (len(buckets), capture_s, max(0.0, graph_s - capture_s))
