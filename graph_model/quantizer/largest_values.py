"""The largest values of each decoder layer over calibration texts: residual stream, branches, and everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.families import Layer, family_of
from graph_gemma.graph_model.quantizer.layers import embed, run_layer
from graph_gemma.graph_model.quantizer.source import read_finite, read_float_config


@dataclass(frozen=True)
class LargestValues:
    """Largest absolute values of a decoder layer."""

    stream: float  # of the residual stream: before the layer, between its two parts, and after it
    branch: float  # of what attention and MLP add to the stream
    other: float  # of everything else: what linears read and give, and normed heads
    other_at: str  # where that is


class Watch:
    """Keeps the largest values of a decoder layer while it runs."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._found = dict.fromkeys(("stream", "branch", "other"), (0.0, ""))

    def attach(self, module: nn.Module) -> None:
        """Watch the layer's module."""

        def watch(kind: str, path: str, *, reads: bool) -> None:
            """Look at what the module at `path` reads, or else at what it gives."""
            at = f"{'input' if reads else 'output'} of {path}"
            watched = module.get_submodule(path)
            if reads:
                watched.register_forward_pre_hook(lambda _, args: self._keep(kind, at, args[0]))
            else:
                watched.register_forward_hook(lambda _, args, result: self._keep(kind, at, result))

        watch("stream", "", reads=False)
        for norm in self._layer.norms:
            if norm.reads == "stream":
                watch("stream", norm.path, reads=True)
        for linear in self._layer.linears:
            watch("other", linear.path, reads=True)
        for path in (part.path for parts in (self._layer.norms, self._layer.linears) for part in parts):
            watch("branch" if path in self._layer.branches else "other", path, reads=False)

    def _keep(self, kind: str, at: str, values: Tensor) -> None:
        low, high = values.aminmax()
        self._found[kind] = max(self._found[kind], (max(-low.item(), high.item()), at))

    def largest(self) -> LargestValues:
        """Those of all texts so far."""
        return LargestValues(self._found["stream"][0], self._found["branch"][0], *self._found["other"])


def largest_values(
    source: Path, sequences: Sequence[Sequence[int]], progress: Callable[[], None] = lambda: None
) -> list[LargestValues]:
    """Those of each decoder layer of a floating-point checkpoint, computed in float32, a layer in memory at a time.

    sequences: token ids of the calibration texts. progress is told of each finished layer.
    Raises UserError: a checkpoint that is quantized, or weights that are not finite.
    """
    config = read_float_config(source)
    family = family_of(config)
    found = []
    with open_checkpoint(source, config) as checkpoint:
        hidden = embed(family, read_finite(checkpoint, family.embedding, config), sequences)
        for index, layer in enumerate(family.layers):
            names = {name: f"{family.layer_path(index)}.{name}" for name in layer.tensors}
            weights = {name: read_finite(checkpoint, whole, config).float() for name, whole in names.items()}
            watch = Watch(layer)
            run_layer(family, index, weights, hidden, observed=(), attach=watch.attach)
            found.append(watch.largest())
            for whole in names.values():
                checkpoint.release(whole)
            progress()
    return found
