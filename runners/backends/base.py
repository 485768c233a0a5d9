"""Backend: the interface of what compiles graphs for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.passes.framework.contract import Pass

StepFunction = Callable[..., Sequence[Tensor]]
Check = Literal["no", "stop", "record"]  # what to do about a step that differs from the graph that it was made from


class Backend(Protocol):
    """Compiles graphs for one device."""

    name: ClassVar[str]
    leaves_artifacts: ClassVar[bool]  # whether `compile` leaves files that `load` takes; else nothing is cached
    device: torch.device

    def fingerprint(self) -> dict[str, Any]:
        """What, besides graph and versions of Python and torch, decides the result of `compile`."""

    def kernel_passes(self, dtype: torch.dtype, scheme: Scheme | None = None) -> tuple[Pass, ...]:
        """The passes that select this backend's kernels for a model of a dtype and a quantization; they run last."""

    def compile(self, graph: ModelGraph, arguments: Sequence[Tensor], artifact: Path | None) -> StepFunction:
        """A function of the graph's placeholders that returns its outputs and writes its caches in place.

        arguments: tensors of the placeholders' shapes on the backend's device, in order; read for their metadata.
        artifact: where to leave a file from which `load` makes the same function; None: nowhere. A graph that can be
        used in this process only leaves none.
        """

    def load(self, artifact: Path) -> StepFunction | None:
        """The function that `compile` left at `artifact`, or None where there is none that can be used."""
