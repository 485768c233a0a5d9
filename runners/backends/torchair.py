"""torchair: one static Ascend graph per step, on a device or on the CANN stand-in."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.passes.ascend.attention import AscendFusedAttention, attention_choice
from graph_gemma.passes.ascend.flat_attention import AscendFlatAttention
from graph_gemma.passes.ascend.geglu import AscendGeGlu
from graph_gemma.passes.ascend.int8_attention import AscendInt8Attention
from graph_gemma.passes.ascend.last_token import AscendLastToken
from graph_gemma.passes.ascend.linear import AscendLinear
from graph_gemma.passes.ascend.norm import AscendNormExact, AscendNormFused
from graph_gemma.passes.ascend.quant import AscendQuant
from graph_gemma.passes.ascend.rotary import AscendRotary
from graph_gemma.passes.ascend.softcap import AscendSoftcap
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.checked_step import CheckedStep
from graph_gemma.runners.backends.ascend.lower import LoweredStep, lower
from graph_gemma.runners.backends.ascend.printer import list_graph
from graph_gemma.runners.backends.ascend.register import register_kernels
from graph_gemma.runners.backends.ascend.roofline import gathered_bytes
from graph_gemma.runners.backends.ascend.stored_step import StoredStep
from graph_gemma.runners.backends.base import Check, StepFunction


@dataclass(frozen=True)
class AscendOptions:
    """How graphs are lowered, dumped and checked."""

    soc: Chip  # the chip to lower for
    norm: str  # exact or fused
    dump_dir: Path | None = None  # where lowered graphs are written as text
    check: Check = "no"  # every run of a lowered graph against the graph that was lowered


def kernel_passes(options: AscendOptions) -> tuple[Pass, ...]:
    """The passes that select the chip's kernels; torch_npu must be loaded when they run."""
    soc = options.soc
    return (
        AscendQuant(soc),
        *_attention_passes(soc),
        AscendNormFused() if options.norm == "fused" else AscendNormExact(soc),
        AscendRotary(soc),
        AscendGeGlu(),
        AscendSoftcap(),
        AscendLinear(soc),
        AscendLastToken(),
    )


def _attention_passes(soc: Chip) -> tuple[Pass, ...]:
    if soc.has("FusedInferAttentionScore"):
        return AscendFusedAttention(soc), AscendInt8Attention(soc)
    return (AscendFlatAttention(soc),)


class TorchairBackend:
    """Lowers to GE through torchair. Without CANN the graph runs in the GE interpreter, on the CPU.

    cache_dir: where the stand-in's libraries are kept.
    """

    name: ClassVar[str] = "torchair"
    leaves_artifacts: ClassVar[bool] = True

    def __init__(self, options: AscendOptions, cache_dir: Path) -> None:
        standin.load(options.soc, cache_dir)
        register_kernels()
        self.options = options
        # A rank has taken its device before; the stand-in has one per process.
        self.device = torch.device("npu", torch.get_device_module("npu").current_device())
        self.checked_steps: list[CheckedStep] = []  # with options.check, the steps compiled so far

    @property
    def description(self) -> str:
        """The chip, and whether graphs run on a device or on the stand-in."""
        soc = self.options.soc
        where = standin.BANNER if standin.is_standin() else "on the device"
        return f"torchair for {soc.product} ({soc.cann_name}), norm={self.options.norm}; {where}"

    def fingerprint(self) -> dict[str, Any]:
        versions = {"torch_npu": importlib.metadata.version("torch_npu"), "standin": standin.is_standin()}
        return {"soc": self.options.soc.name, "norm": self.options.norm, **versions}

    def kernel_passes(self, dtype: torch.dtype, scheme: Scheme | None = None) -> tuple[Pass, ...]:
        return kernel_passes(self.options)

    def compile(self, graph: ModelGraph, arguments: Sequence[Tensor], artifact: Path | None) -> StepFunction:
        lowered = self.lower(graph)
        stored = lowered.stored()
        # A device's graph names its communication groups, which the next process names otherwise.
        if artifact is not None and (graph.shard.world_size == 1 or standin.is_standin()):
            stored.write(artifact)
        step = stored.load()
        if self.options.check == "no":
            return step
        self.checked_steps.append(CheckedStep(graph, lowered, step, record=self.options.check == "record"))
        return self.checked_steps[-1]

    def lower(self, graph: ModelGraph) -> LoweredStep:
        """The step's GE graph, dumped where dump_dir says; nothing is loaded or run."""
        lowered = lower(graph)
        if self.options.dump_dir is not None:
            self._dump(graph, lowered, self.options.dump_dir / str(graph.bucket))
        return lowered

    def load(self, artifact: Path) -> StepFunction | None:
        """None where the graph is to be compared or dumped, for which it must be made."""
        if self.options.check != "no" or self.options.dump_dir is not None:
            return None
        try:
            return StoredStep.read(artifact).load()
        except (OSError, ValueError, KeyError):
            return None

    def _dump(self, graph: ModelGraph, lowered: LoweredStep, folder: Path) -> None:
        """torchair's text of the lowered graph, and a listing that says where it runs and which attention was taken."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lowered.pbtxt").write_text(lowered.pbtxt, encoding="utf-8")
        layers = range(len(graph.family.layers))
        choices = dict.fromkeys(attention_choice(graph, self.options.soc, index) for index in layers)
        ge_graph = lowered.graph
        gathers = gathered_bytes(ge_graph)
        header = [
            f"# {self.description}",
            f"# soc {self.options.soc.name}",
            f"# bucket {graph.bucket}",
            *(f"# attention: {choice.op}, {choice.reason}" for choice in choices),
            f"# gathers of cached blocks: {len(gathers)}, which copy {sum(gathers.values())} bytes",
        ]
        (folder / "lowered.txt").write_text("\n".join(header) + "\n" + list_graph(ge_graph), encoding="utf-8")
