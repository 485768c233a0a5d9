"""Check mode: run the graph before and after each pass on the same inputs and hold the pass to its tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.numerics import TOLERANCE, difference, is_finite
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.weights import Expression, Read, evaluate
from graph_gemma.passes.framework.contract import Pass, PassError, Tier
from graph_gemma.passes.framework.integers import IntegerBound, IntegerDifference, Recorder, compare_integers
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.select_token import SAMPLING_INPUTS

_KV_CACHE = KVCacheConfig(num_blocks=8, block_size=16)
_INT8_KV_CACHE = KVCacheConfig(num_blocks=8, block_size=32)  # the smallest that an int8 cache may have on Ascend
BUCKETS = (
    Bucket("prefill", batch=2, chunk=8, max_blocks_per_seq=0),
    Bucket("extend", batch=2, chunk=8, max_blocks_per_seq=2),
    Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2),
    Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2, selection="sample"),
)


def check_passes(
    config: GemmaConfig,
    dtype: torch.dtype,
    passes: Sequence[Pass],
    read: Read,
    buckets: Sequence[Bucket] = BUCKETS,
    quantization: Quantization | None = None,
) -> list[Comparison]:
    """Run the passes on a small graph of every phase, comparing before and after each; returns what was found.

    `read` gives the checkpoint's tensors. A pass that found nothing, as another is off, is skipped, with the reason.
    Raises PassError naming the first pass that breaks its tier.
    """
    checker = PassChecker(read)
    cache_config = _INT8_KV_CACHE if quantization is not None and quantization.kv8 else _KV_CACHE
    for bucket in buckets:
        run_passes(capture(config, bucket, cache_config, dtype, quantization), passes, observe=checker)
    return checker.comparisons


# What a pass says of itself for check mode only, where the graph after it is compared in another way than the others'.


@runtime_checkable
class ChangesOutput(Protocol):
    """A pass after which the graph's first output is something else."""

    def project(self, output: Any, graph: ModelGraph, inputs: dict[str, Tensor]) -> Any:
        """What the output of the graph before the pass corresponds to in the graph after it."""


@runtime_checkable
class ChangesCaches(Protocol):
    """A pass after which caches are stored otherwise."""

    def earlier_caches(self, caches: list[Tensor], count: int) -> list[Tensor]:
        """The `count` caches of the graph before the pass that hold what `caches` hold in the graph after it."""


@runtime_checkable
class BoundsIntegers(Protocol):
    """A pass whose graphs' int8 activations are compared."""

    def integer_bound(self, graph: ModelGraph) -> IntegerBound:
        """What the pass may change of them."""


@dataclass(frozen=True)
class Comparison:
    """A pass held its tier in a graph: relative difference of the outputs before and after it, and what is allowed.

    integers: of int8 activations, where the pass says what it may change of them. skipped: why the pass found nothing.
    in_float32: the graph before the pass gives no finite numbers in its dtype, so that both were computed in float32.
    """

    graph_pass: Pass
    bucket: Bucket
    error: float
    bound: float
    integers: IntegerDifference | None = None
    skipped: str = ""
    in_float32: bool = False

    def __str__(self) -> str:
        how = " in float32" if self.in_float32 else ""
        return f"{self.graph_pass.name} on {self.bucket}: difference {self.error:.1e}{how}, allowed {self.bound:.0e}"


class PassChecker:
    """Compares a pass's graphs with reference kernels and the model's weights."""

    def __init__(self, read: Read) -> None:
        self.comparisons: list[Comparison] = []
        self._read = read
        self._weights: dict[Expression, Tensor] = {}

    def __call__(self, graph_pass: Pass, before: ModelGraph, after: ModelGraph) -> None:
        if reason := after.skipped.get(graph_pass.name):
            self.comparisons.append(Comparison(graph_pass, after.bucket, 0.0, 0.0, skipped=reason))
            return
        inputs = example_inputs(after, past=bool(before.placeholders("cache")))
        caches = random_caches(after)
        count = len(before.placeholders("cache"))
        earlier = graph_pass.earlier_caches(caches, count) if isinstance(graph_pass, ChangesCaches) else caches[:count]
        allowed = graph_pass.integer_bound(after) if isinstance(graph_pass, BoundsIntegers) else None
        recorder = Recorder(before) if allowed is not None else None
        expected = self._run(before, inputs, earlier, recorder)
        widened = not is_finite(expected)
        if widened:
            expected = self._run(before, inputs, earlier, _InFloat32(before))
        if isinstance(graph_pass, ChangesOutput):
            expected = graph_pass.project(expected, before, inputs)
        found = self._run(after, inputs, caches, _InFloat32(after) if widened else None)
        lens = inputs.get("query_lens")
        if lens is not None and expected.shape[:2] == (after.bucket.batch, after.bucket.chunk):
            real = torch.arange(after.bucket.chunk) < lens[:, None]
            expected, found = expected[real], found[real]
        error = difference(expected, found)
        bounds = {Tier.EXACT: 0.0, Tier.TOLERANT: TOLERANCE[after.dtype], Tier.QUANTIZING: graph_pass.budget}
        bound = bounds[graph_pass.tier]
        integers = None
        if recorder is not None:
            theirs = Recorder(after, recorder)
            self._run(after, inputs, caches, theirs)
            integers = compare_integers(recorder.values, theirs.values)
        comparison = Comparison(graph_pass, after.bucket, error, bound, integers, in_float32=widened)
        if not error <= bound:
            raise PassError(f"{comparison}. The pass breaks its tier, {graph_pass.tier.value}.")
        if integers is not None and allowed is not None and not integers.within(allowed):
            raise PassError(
                f"{graph_pass.name} on {after.bucket}: of the int8 values that products read {integers.share:.1%} "
                f"differ, by at most {integers.max_lsb}; allowed are {allowed.share:.1%}, by {allowed.max_lsb}"
                f"{'; ' + integers.problem if integers.problem else ''}. The pass breaks its bound on integers."
            )
        self.comparisons.append(comparison)

    def _run(
        self, graph: ModelGraph, inputs: dict[str, Tensor], caches: list[Tensor], instead: fx.Interpreter | None = None
    ) -> Tensor:
        """The graph's first output, with rows drawn again that a sharded sampling step could not draw.

        instead: what runs the graph, otherwise than it is.
        """
        plan = graph.weight_plan
        missing = [expression for expression in plan.values() if expression not in self._weights]
        self._weights.update(evaluate(missing, self._read, torch.device("cpu")))
        weights = [self._weights[expression] for expression in plan.values()]
        placeholders = graph.placeholders("cache")
        own_caches = [c.to(node.meta["val"].dtype, copy=True) for c, node in zip(caches, placeholders, strict=False)]
        names = [node.name for node in graph.placeholders("input")]
        with torch.no_grad():
            run: Callable[..., Any] = graph.module if instead is None else instead.run
            outputs = run(*weights, *own_caches, *(inputs[name] for name in names))
            if graph.calls(ops.sharded_sample_token):
                sampling = [inputs[name] for name, _ in SAMPLING_INPUTS]
                outputs = ops.redraw(outputs, sampling, graph.bucket.logprobs, graph.shard.world_size)
        return outputs[0]


class _InFloat32(fx.Interpreter):
    """Runs a graph of 16 bit in float32, with the weights that it has."""

    def __init__(self, graph: ModelGraph) -> None:
        super().__init__(graph.module)
        self._dtype = graph.dtype

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        return value.float() if value.dtype == self._dtype else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        def wide(value: Any) -> Any:
            return torch.float32 if value is self._dtype else value

        return super().call_function(target, tuple(map(wide, args)), {name: wide(v) for name, v in kwargs.items()})


def example_inputs(graph: ModelGraph, past: bool) -> dict[str, Tensor]:
    """Random inputs of the graph's bucket: rows of different lengths, with `past` some tokens in their blocks."""
    bucket, block_size = graph.bucket, graph.cache_config.block_size
    generator = torch.Generator().manual_seed(0)
    batch, chunk = bucket.batch, bucket.chunk
    rows = torch.arange(batch)
    query_lens = chunk - rows % chunk
    starts = (rows + 1) * block_size // 2 if past and bucket.phase != "prefill" else torch.zeros(batch).long()
    steps = torch.arange(chunk)
    positions = starts[:, None] + steps
    table = 1 + torch.arange(batch * bucket.max_blocks_per_seq).view(batch, -1)
    real = steps < query_lens[:, None]
    if bucket.max_blocks_per_seq:
        slots = table.gather(1, positions // block_size) * block_size + positions % block_size
    else:
        slots = block_size + torch.arange(batch * chunk).view(batch, chunk)
    scratch = torch.arange(batch * chunk).view(batch, chunk)
    # Rows have other blocks in the pool of layers with a window.
    window_table, window_slots = table.flip(0), slots
    if bucket.max_blocks_per_seq:
        window_slots = window_table.gather(1, positions // block_size) * block_size + positions % block_size
    return {
        "input_ids": torch.randint(0, graph.config.vocab_size, (batch, chunk), generator=generator) * real,
        "positions": positions * real,
        "slot_mapping": torch.where(real, slots, scratch),
        "query_lens": query_lens,
        "context_lens": starts + query_lens,
        "block_table": table,
        "window_slot_mapping": torch.where(real, window_slots, scratch),
        "window_block_table": window_table,
        "temperature": torch.linspace(0.0, 1.0, batch),
        "top_k": rows * 7,
        "top_p": torch.linspace(0.7, 1.0, batch),
        "uniform": torch.rand(batch, generator=generator),
        "score_positions": torch.arange(bucket.scored) % query_lens[:, None],
        "target_ids": torch.randint(0, graph.config.vocab_size, (batch, bucket.scored), generator=generator),
    }


def random_caches(graph: ModelGraph) -> list[Tensor]:
    """What the graph's caches may hold, in the order of their placeholders."""
    generator = torch.Generator().manual_seed(1)
    return [_random(node.meta["val"], generator) for node in graph.placeholders("cache")]


def _random(fake: Tensor, generator: torch.Generator) -> Tensor:
    """Unit normal numbers; for an int8 cache all its integers, and for the scales of one what makes them so."""
    if fake.dtype == torch.int8:
        return torch.randint(-127, 128, fake.shape, generator=generator, dtype=torch.int8)
    values = torch.randn(fake.shape, generator=generator)
    return (values if fake.dim() == 4 else values.abs() / 64).to(fake.dtype)
