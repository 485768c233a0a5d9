"""CompiledModel: run a model's steps, with its weights, its KV caches and one compiled step per bucket."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput, make_inputs
from graph_gemma.graph_model.errors import NotFiniteError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.weights import Expression, Read, evaluate
from graph_gemma.runners.backends.base import StepFunction
from graph_gemma.runners.compile.not_finite import first_not_finite
from graph_gemma.runners.compile.step import Recipe, Step, prepare_step

_MOST_SEARCHES = 3
_NOT_SEARCHED = "Where they begin was searched for earlier requests only; see their errors."


@dataclass
class _Loaded:
    """A bucket that can run."""

    inputs: StepInputs
    arguments: list[Tensor]
    function: StepFunction
    host_inputs: list[Tensor]  # the arrays of `inputs` as tensors
    device_inputs: list[Tensor]  # the same tensors on the CPU, their copies elsewhere


@dataclass
class CompileReport:
    """Steps that warming up compiled or found in the cache, and its time."""

    compiled: int = 0
    from_cache: int = 0
    seconds: float = 0.0


class CompiledModel:
    """Runs steps. Block ids 0 to num_scratch_blocks - 1 belong to the padding; all others to the caller.

    read: returns a checkpoint tensor by name; called while weights are loaded, each weight once.
    """

    def __init__(self, recipe: Recipe, buckets: BucketTable, max_seq_len: int, read: Read) -> None:
        self.recipe = recipe
        self.buckets = buckets
        self.max_seq_len = max_seq_len
        self.block_size = recipe.cache_config.block_size
        self.num_blocks = recipe.cache_config.num_blocks
        self.window = family_of(recipe.config).window
        self.num_window_blocks = 0 if self.window is None else recipe.cache_config.blocks(self.window)
        self.num_scratch_blocks = num_scratch_blocks(buckets, recipe.cache_config.block_size)
        self.report = CompileReport()
        self._read = read
        self._device = recipe.backend.device
        self._weights: dict[Expression, Tensor] = {}
        self._caches: list[Tensor] = []
        self._loaded: dict[Bucket, _Loaded] = {}
        self.num_searches = 0  # for numbers that are not finite

    def warm_up(self, buckets: Iterable[Bucket]) -> None:
        """Load weights and make every bucket of `buckets` ready to run."""
        start = time.perf_counter()
        try:
            steps = [prepare_step(self.recipe, bucket) for bucket in buckets if bucket not in self._loaded]
            self._load_weights(steps)
            self._compile(steps)
        finally:
            self.recipe.status.done()
        self.report.seconds += time.perf_counter() - start

    def _compile(self, steps: Sequence[Step]) -> None:
        """Make the steps ready, saying how far it is where they do not come from the cache."""
        start, compiled = time.perf_counter(), 0
        total = sum(not step.cached for step in steps)
        for step in steps:
            if not step.cached:
                left = (time.perf_counter() - start) / compiled * (total - compiled) if compiled else None
                about = "" if left is None else f", about {left:.0f} s left"
                self.recipe.status(f"compiling step {compiled + 1} of {total}{about}")
            self._loaded[step.bucket] = self._load(step)
            compiled += not step.cached
            self.report.from_cache += step.cached
            self.report.compiled += not step.cached

    def inputs(self, bucket: Bucket) -> StepInputs:
        """The arrays that the next `run(bucket)` reads, always the same ones; fill them in place."""
        if bucket not in self._loaded:
            self.warm_up([bucket])
        return self._loaded[bucket].inputs

    def run(self, bucket: Bucket) -> StepOutput:
        """Execute the bucket's step on its input arrays."""
        loaded = self._loaded[bucket]
        for host, device in zip(loaded.host_inputs, loaded.device_inputs, strict=True):
            if device is not host:
                device.copy_(host, non_blocking=True)
        with torch.no_grad():
            outputs = loaded.function(*loaded.arguments)
        if self.recipe.shard.world_size > 1 and bucket.selection == "sample":
            sampling = [torch.from_numpy(array) for array in loaded.inputs.sampling()]
            outputs = ops.redraw(outputs, sampling, bucket.logprobs, self.recipe.shard.world_size)
        return StepOutput(*(output.cpu().numpy() for output in outputs))

    def explain_not_finite(self, bucket: Bucket, rows: Sequence[int]) -> list[Exception]:
        """An error for each of these rows of the last `run(bucket)`, naming dtype and the layer where NaN began.

        The search runs the graph again, slowly, so a model that goes on failing is searched a few times only.
        """
        places = self.search(bucket, rows) if self.num_searches < _MOST_SEARCHES else [_NOT_SEARCHED] * len(rows)
        self.num_searches += 1
        dtype = str(self.recipe.dtype).removeprefix("torch.")
        return [NotFiniteError.of(dtype, place) for place in places]

    def search(self, bucket: Bucket, rows: Sequence[int]) -> list[str]:
        """Where, in each of these rows of the last `run(bucket)`, the first number is that is not finite."""
        return first_not_finite(self.recipe.graph(bucket), self.arguments(bucket), rows)

    def arguments(self, bucket: Bucket) -> list[Tensor]:
        """The tensors that the bucket's step reads: weights, caches, and the inputs of its last run."""
        return self._loaded[bucket].arguments

    @property
    def weight_bytes(self) -> int:
        """Bytes of the loaded weights."""
        return sum(tensor.nbytes for tensor in self._weights.values())

    def _load_weights(self, steps: Sequence[Step]) -> None:
        wanted = {expression: None for step in steps for expression in step.weight_plan.values()}
        missing = [expression for expression in wanted if expression not in self._weights]
        if missing:
            self.recipe.status("reading weights")
        self._weights.update(evaluate(missing, self._read, self._device))

    def _load(self, step: Step) -> _Loaded:
        if not self._caches:
            self._caches = [torch.zeros(shape, dtype=dtype).to(self._device) for shape, dtype in step.caches]
        inputs = make_inputs(step.bucket, self.window is not None)
        arrays = inputs.arrays()
        host_inputs = [torch.from_numpy(arrays[name]) for name in step.input_names]
        device_inputs = [tensor.to(self._device) for tensor in host_inputs]
        weights = [self._weights[expression] for expression in step.weight_plan.values()]
        arguments = [*weights, *self._caches, *device_inputs]
        return _Loaded(inputs, arguments, step.compile(arguments), host_inputs, device_inputs)


def num_scratch_blocks(buckets: BucketTable, block_size: int) -> int:
    """Blocks that hold a scratch slot for every token of the largest step."""
    return -(-buckets.num_scratch_slots // block_size)
