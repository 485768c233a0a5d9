"""ExportedModel: run a model from an exported bundle, without capture, passes or lowering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput, make_inputs
from graph_gemma.graph_model.errors import NotFiniteError, UserError
from graph_gemma.runners.backends.ascend.bundle import Bundle, BundleInput, torch_dtype
from graph_gemma.runners.backends.ascend.engine import EngineGraph
from graph_gemma.runners.backends.ascend.interpreter import Program

_Run = Callable[[Sequence[Tensor]], list[Tensor]]


class ExportedModel:
    """Runs a bundle's steps, as CompiledModel runs compiled ones; the engine takes either.

    on_engine: false: the GE interpreter executes the graphs, with nothing but torch and protobuf. true: torchair's
    engine, which is the device where torch_npu was loaded over CANN (`standin.load`).
    """

    def __init__(self, bundle: Bundle, on_engine: bool = False) -> None:
        serving = bundle.manifest["serving"]
        self.bundle = bundle
        table: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in serving["buckets"].items()}
        self.buckets = BucketTable(**table)
        self.block_size: int = serving["block_size"]
        self.num_blocks: int = serving["num_blocks"]
        self.window: int | None = serving["window"]
        self.num_window_blocks: int = serving["num_window_blocks"]
        self.num_scratch_blocks: int = serving["num_scratch_blocks"]
        self.max_seq_len: int = serving["max_seq_len"]
        self._engine = on_engine
        self._device = torch.device("npu:0" if on_engine else "cpu")
        self._tensors: dict[str, Tensor] = {}  # weights and caches
        self._inputs: dict[Bucket, StepInputs] = {}
        self._runs: dict[Bucket, _Run] = {}

    def inputs(self, bucket: Bucket) -> StepInputs:
        """The arrays that the next `run(bucket)` reads. Raises UserError if the bundle has no such bucket."""
        if bucket not in self.bundle.steps:
            raise UserError(
                f"{self.bundle.directory} holds no graph for {bucket}; it holds "
                f"{', '.join(map(str, self.bundle.steps))}. Export the model with settings that lead to it."
            )
        if bucket not in self._inputs:
            self._inputs[bucket] = make_inputs(bucket, self.window is not None)
            self._runs[bucket] = self._load(bucket)
        return self._inputs[bucket]

    def run(self, bucket: Bucket) -> StepOutput:
        """Execute the bucket's graph on its input arrays."""
        step, arrays = self.bundle.steps[bucket], self._inputs[bucket].arrays()
        tensors = [
            torch.from_numpy(arrays[item.name]).to(self._device)
            if item.kind == "input"
            else self._tensors[item.name].view(item.shape)
            for item in step.inputs
        ]
        with torch.no_grad():
            results = self._runs[bucket](tensors)
        return StepOutput(*(results[index].cpu().numpy() for index in step.outputs))

    def explain_not_finite(self, bucket: Bucket, rows: Sequence[int]) -> list[Exception]:
        """An error for each of these rows; a bundle's graphs cannot be run node by node, so the layer stays unknown."""
        where = "Which layer that begins in, infer.py shows with the same checkpoint and prompt."
        return [NotFiniteError.of(str(self.bundle.manifest["dtype"]), where) for _ in rows]

    def _load(self, bucket: Bucket) -> _Run:
        if not self._tensors:
            self._tensors = {name: tensor.to(self._device) for name, tensor in self.bundle.weights()}
        inputs = self.bundle.steps[bucket].inputs
        for item in inputs:
            if item.kind == "cache" and item.name not in self._tensors:
                self._tensors[item.name] = torch.zeros(item.shape, dtype=torch_dtype(item.dtype)).to(self._device)
        missing = [item.name for item in inputs if item.kind == "weight" and not self._fits(item)]
        if missing:
            raise UserError(f"{self.bundle.directory}: weight {missing[0]} is missing or of another shape or dtype.")
        if self._engine:
            return EngineGraph(self.bundle.serialized(bucket), len(inputs), self.bundle.options(bucket)).run
        return Program(self.bundle.graph(bucket)).run

    def _fits(self, item: BundleInput) -> bool:
        tensor: Any = self._tensors.get(item.name)
        return tensor is not None and (tuple(tensor.shape), tensor.dtype) == (item.shape, torch_dtype(item.dtype))
