"""Eager: the graph's ops one by one, canonical ops by their reference kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.runners.backends.base import StepFunction


class EagerBackend:
    """Needs nothing but torch; other backends are compared with it."""

    name: ClassVar[str] = "eager"
    leaves_artifacts: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def kernel_passes(self, dtype: torch.dtype, scheme: Scheme | None = None) -> tuple[Pass, ...]:
        return ()

    def compile(self, graph: ModelGraph, arguments: Sequence[Tensor], artifact: Path | None) -> StepFunction:
        return graph.module.forward

    def load(self, artifact: Path) -> StepFunction | None:
        return None
