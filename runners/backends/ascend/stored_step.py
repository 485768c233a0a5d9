"""StoredStep: a lowered step as one file, which the engine runs without capture, passes or lowering."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from graph_gemma.runners.backends.ascend.engine import EngineGraph

_GRAPH, _REST = "graph.pb", "step.json"


@dataclass(frozen=True)
class StepInput:
    """An input of the GE graph."""

    placeholder: int  # which of the step's arguments it is
    shape: tuple[int, ...] | None  # in which the graph reads it, over the same memory; None: the argument's own


@dataclass(frozen=True)
class StoredStep:
    """What the engine needs to run a lowered step."""

    serialized: bytes  # the ge.proto.ModelDef
    options: dict[str, str]  # torchair's compile options for it
    inputs: tuple[StepInput, ...]  # by the indices of the Data nodes
    outputs: tuple[int, ...]  # which of the graph's outputs are the step's, in the step's order
    # Outputs that are written over inputs, as (output, input); the engine itself writes other inputs that change.
    assigned: tuple[tuple[int, int], ...] = ()

    def write(self, path: Path) -> None:
        """One file: the graph, and the rest as JSON. Equal steps make equal files."""
        rest = {
            "options": self.options,
            "inputs": [[item.placeholder, item.shape] for item in self.inputs],
            "outputs": self.outputs,
            "assigned": self.assigned,
        }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(zipfile.ZipInfo(_GRAPH), self.serialized, zipfile.ZIP_DEFLATED)
            file.writestr(zipfile.ZipInfo(_REST), json.dumps(rest, sort_keys=True), zipfile.ZIP_DEFLATED)

    @staticmethod
    def read(path: Path) -> StoredStep:
        """What `write` wrote. Raises OSError, ValueError or KeyError for anything else."""
        try:
            with zipfile.ZipFile(path) as file:
                serialized, rest = file.read(_GRAPH), json.loads(file.read(_REST))
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from None
        return StoredStep(
            serialized,
            {str(name): str(value) for name, value in rest["options"].items()},
            tuple(StepInput(int(n), None if shape is None else tuple(map(int, shape))) for n, shape in rest["inputs"]),
            tuple(map(int, rest["outputs"])),
            tuple((int(output), int(given)) for output, given in rest["assigned"]),
        )

    def load(self) -> LoadedStep:
        """Hand the graph to the engine, which compiles it; torch_npu must be loaded."""
        return LoadedStep(self)


class LoadedStep:
    """Runs a loaded graph on the tensors of the step's placeholders, on device npu."""

    def __init__(self, step: StoredStep) -> None:
        self._step = step
        self._graph = EngineGraph(step.serialized, len(step.inputs), step.options)
        self._seen: tuple[Tensor, ...] = ()
        self._tensors: list[Tensor] = []
        self._assigned = dict(step.assigned)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        if len(arguments) != len(self._seen) or any(a is not b for a, b in zip(arguments, self._seen, strict=True)):
            self._seen, self._tensors = arguments, as_read(self._step.inputs, arguments)
        results = self._graph.run(self._tensors, self._assigned)
        return tuple(results[index] for index in self._step.outputs)


def as_read(inputs: Sequence[StepInput], arguments: Sequence[Tensor]) -> list[Tensor]:
    """A graph's inputs among a step's arguments: caches under the graph's shape, over the same memory."""
    read = ((arguments[item.placeholder], item.shape) for item in inputs)
    return [tensor if shape is None else tensor.view(shape) for tensor, shape in read]


def compile_options(concrete: Any) -> dict[str, str]:
    """What torchair lets the engine compile a graph with.

    It warns that frozen parameters must stay where they are: weights are loaded once, and they do.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="When enable frozen_parameter")
        return dict(concrete._normalize_ge_option()[0])
