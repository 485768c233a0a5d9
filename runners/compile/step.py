"""Compile the step of a bucket: capture, passes and backend, or the cache."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model import weights
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import WeightPlan
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.passes.framework.manager import Observer, run_passes
from graph_gemma.runners.backends.base import Backend, StepFunction
from graph_gemma.runners.compile.cache import CompileCache, cache_key, source_digest
from graph_gemma.runners.io.status import QUIET, Status


@dataclass(frozen=True)
class Recipe:
    """What the steps of one model have in common, whatever their bucket."""

    config: GemmaConfig
    dtype: torch.dtype
    cache_config: KVCacheConfig
    passes: tuple[Pass, ...]
    backend: Backend
    cache: CompileCache | None = None
    dump_dir: Path | None = None
    observe: Observer | None = None
    quantization: Quantization | None = None
    shard: Shard = WHOLE  # the rank that the steps run on, for which `passes` were built
    description: str = ""  # of the backend, for dumps
    status: Status = QUIET  # is told which step is captured or compiled

    def key(self, bucket: Bucket) -> str:
        """The cache key of the recipe's step for `bucket`."""
        return cache_key(
            {
                "config": self.config.to_json(),
                "bucket": dataclasses.asdict(bucket),
                "cache_config": dataclasses.asdict(self.cache_config),
                "dtype": str(self.dtype),
                "quantization": dataclasses.asdict(self.quantization) if self.quantization else None,
                "shard": dataclasses.asdict(self.shard),
                "passes": [[p.name, dataclasses.asdict(p)] for p in self.passes],
                "sources": source_digest(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "backend": [self.backend.name, self.backend.fingerprint()],
            }
        )

    def graph(self, bucket: Bucket) -> ModelGraph:
        """The captured and rewritten graph of `bucket`."""
        graph = capture(self.config, bucket, self.cache_config, self.dtype, self.quantization)
        run_passes(graph, self.passes, self.dump_dir, self.observe, self.description)
        return graph


@dataclass(frozen=True)
class Step:
    """A bucket's signature - weights, then caches, then inputs -, and how to get its function."""

    bucket: Bucket
    weight_plan: WeightPlan
    caches: tuple[tuple[tuple[int, ...], torch.dtype], ...]  # shape and dtype
    input_names: tuple[str, ...]
    compile: Callable[[Sequence[Tensor]], StepFunction]  # makes the function from arguments of the right shapes
    cached: bool  # whether the function comes from the cache


def prepare_step(recipe: Recipe, bucket: Bucket) -> Step:
    """Find the step in the cache, or capture and rewrite its graph; compiling is left to `Step.compile`.

    With `dump_dir` or `observe` the graph is made in any case, so that it can be seen.
    """
    cache = recipe.cache if recipe.backend.leaves_artifacts else None
    key = recipe.key(bucket) if cache is not None else ""
    if cache is not None and recipe.dump_dir is None and recipe.observe is None:
        step = _stored_step(recipe.backend, cache, key, bucket)
        if step is not None:
            return step
    recipe.status(f"capturing and rewriting step {bucket}")
    graph = recipe.graph(bucket)

    def compile_graph(arguments: Sequence[Tensor]) -> StepFunction:
        if cache is None:
            return recipe.backend.compile(graph, arguments, None)
        compiled: list[StepFunction] = []
        cache.store(
            key,
            _describe(graph),
            lambda artifact: compiled.append(recipe.backend.compile(graph, arguments, artifact)),
        )
        return compiled[0]

    return Step(
        bucket,
        graph.weight_plan,
        _caches(graph),
        tuple(node.name for node in graph.placeholders("input")),
        compile_graph,
        cached=False,
    )


def _caches(graph: ModelGraph) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    values = [node.meta["val"] for node in graph.placeholders("cache")]
    return tuple((tuple(value.shape), value.dtype) for value in values)


def _describe(graph: ModelGraph) -> dict[str, Any]:
    return {
        "bucket": str(graph.bucket),
        "weights": {name: weights.to_json(expression) for name, expression in graph.weight_plan.items()},
        "caches": [[list(shape), str(dtype).removeprefix("torch.")] for shape, dtype in _caches(graph)],
        "inputs": [node.name for node in graph.placeholders("input")],
    }


def _stored_step(backend: Backend, cache: CompileCache, key: str, bucket: Bucket) -> Step | None:
    """The step of an entry; None where there is none that can be used."""
    found = cache.find(key)
    if found is None:
        return None
    try:
        function = backend.load(found[1])
        return None if function is None else _described_step(bucket, found[0], function)
    except UserError:
        raise
    except Exception:  # whatever is wrong with what is stored, the step can be made again
        return None


def _described_step(bucket: Bucket, description: dict[str, Any], function: StepFunction) -> Step:
    plan = {name: weights.from_json(raw) for name, raw in description["weights"].items()}
    inputs = tuple(description["inputs"])
    caches = tuple((tuple(shape), getattr(torch, dtype)) for shape, dtype in description["caches"])
    return Step(bucket, plan, caches, inputs, lambda arguments: function, cached=True)
