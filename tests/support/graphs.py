"""Small captured graphs, rewritten up to a pass, with the random weights of a transformers model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, fx

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.weights import Read, evaluate
from graph_gemma.passes.check import PassChecker
from graph_gemma.passes.framework.contract import Pass, describe_target
from graph_gemma.passes.framework.integers import IntegerDifference
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.modelslim import quantized_tensors

KV_CACHE = KVCacheConfig(num_blocks=8, block_size=16)
BUCKETS = {
    "prefill": Bucket("prefill", batch=2, chunk=8, max_blocks_per_seq=0),
    "extend": Bucket("extend", batch=2, chunk=8, max_blocks_per_seq=2),
    "decode": Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2),
    "sample": Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2, selection="sample", logprobs=3),
    "score": Bucket("extend", batch=2, chunk=8, max_blocks_per_seq=2, selection="score", scored=3),
    "distribution": Bucket("prefill", batch=2, chunk=8, max_blocks_per_seq=0, selection="distribution", scored=3),
}
LAYERS = 2


@dataclass(frozen=True)
class Case:
    """A two-layer model, its dtype and how it is quantized."""

    config: GemmaConfig
    dtype: torch.dtype
    quantization: Quantization | None = None

    def captured(self, bucket: str | Bucket = "extend") -> ModelGraph:
        """The plain model's graph, a copy of one's own."""
        return _captured(self, BUCKETS[bucket] if isinstance(bucket, str) else bucket).copy()

    def before(self, pass_class: type[Pass], bucket: str | Bucket = "extend") -> ModelGraph:
        """The graph that the pass gets, a copy of one's own."""
        return _before(self, pass_class, BUCKETS[bucket] if isinstance(bucket, str) else bucket).copy()

    @property
    def read(self) -> Read:
        """Random weights, by name."""
        return _reader(self)


# Between them: biases and none, tied and untied, 16 bit (with casts in the graph) and float32 (without).
CASES = {
    "attention_bias-bfloat16": Case(replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=LAYERS), torch.bfloat16),
    "untied_head-float32": Case(replace(TINY_CONFIGS["untied_head"], num_hidden_layers=LAYERS), torch.float32),
}
BFLOAT16, FLOAT32 = CASES.values()
# Every scheme, from floating-point checkpoints and quantized ones (stored); down_proj and the head stay as they are.
QUANTIZED_CASES = {
    f"{dtype}-{scheme}{'-stored' if stored else ''}": replace(
        case, quantization=Quantization(scheme, select_linears(case.config, ["down_proj", "lm_head"]), stored)
    )
    for dtype, case, scheme, stored in (
        ("bfloat16", BFLOAT16, "w8a8", True),
        ("float32", FLOAT32, "w8a8", True),
        ("bfloat16", BFLOAT16, "w8a8_dynamic", False),
        ("float32", FLOAT32, "w8a16", False),
        ("bfloat16", BFLOAT16, "w8a16", True),
    )
}


@dataclass(frozen=True)
class Rewrite:
    """What a pass did to a graph."""

    before: Counter[str]  # calls by op
    after: Counter[str]
    matches: int
    error: float  # the largest relative difference
    graph: ModelGraph
    integers: IntegerDifference | None  # of the int8 activations where the pass bounds it


def rewrite(graph_pass: Pass, case: Case, bucket: str | Bucket = "extend") -> Rewrite:
    """Run one pass on the graph that it gets in the pipeline, under contract and check mode."""
    graph = case.before(type(graph_pass), bucket)
    before = count(graph)
    matches = graph_pass.apply(graph.copy()).matches
    checker = PassChecker(case.read)
    run_passes(graph, [graph_pass], observe=checker)
    found = checker.comparisons[0]
    return Rewrite(before, count(graph), matches, found.error, graph, found.integers)


def count(graph: ModelGraph) -> Counter[str]:
    """How often the graph calls each op, by its name in the dumps."""
    return Counter(target_name(node) for node in graph.calls())


def target_name(node: fx.Node) -> str:
    """The op's name in the dumps: aten.add.Tensor, gemma.rms_norm, getitem."""
    name = getattr(node.target, "__name__", "")
    return name if name == "getitem" else describe_target(node.target)


def find(graph: ModelGraph, target: object, layer: str = "", index: int = 0) -> fx.Node:
    """The call of `target` whose module's path ends in `layer`; the index-th of several."""
    return [node for node in graph.calls(target) if node.meta["layer"].endswith(layer)][index]


def replace_call(
    graph: ModelGraph, node: fx.Node, target: Callable[..., object], *args: object, **kwargs: object
) -> fx.Node:
    """Put another call in the place of `node`."""
    new = graph.insert(target, *args, at=node, **kwargs)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    graph.graph.erase_node(node)
    return new


@torch.no_grad()
def run_graph(
    graph: ModelGraph, read: Read, inputs: dict[str, Tensor], caches: list[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The graph's outputs; `caches` are written in place."""
    plan = graph.weight_plan
    tensors = evaluate(plan.values(), read, torch.device("cpu"))
    arguments = [inputs[node.name] for node in graph.placeholders("input")]
    return tuple(graph.module(*(tensors[e] for e in plan.values()), *(caches or []), *arguments))


def make_caches(graph: ModelGraph, fill: float = 0.0) -> list[Tensor]:
    """A tensor for each of the graph's caches."""
    return [torch.full(node.meta["val"].shape, fill, dtype=graph.dtype) for node in graph.placeholders("cache")]


@cache
def _captured(case: Case, bucket: Bucket) -> ModelGraph:
    return capture(case.config, bucket, KV_CACHE, case.dtype, case.quantization)


@cache
def _before(case: Case, pass_class: type[Pass], bucket: Bucket) -> ModelGraph:
    index = DEFAULT_PASSES.index(pass_class)
    if index == 0:
        return _captured(case, bucket)
    graph = _before(case, DEFAULT_PASSES[index - 1], bucket).copy()
    run_passes(graph, [DEFAULT_PASSES[index - 1]()])
    return graph


@cache
def _reader(case: Case) -> Read:
    weights = dict(make_model(case.config, dtype=case.dtype).state_dict())
    if case.quantization is not None and case.quantization.stored:
        scheme = case.quantization.scheme
        weights = quantized_tensors(weights, case.quantization.linears, scheme, case.dtype).tensors
    return weights.__getitem__
