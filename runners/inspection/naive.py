"""Compare this project's steps with transformers' model as torchair lowers it, without any pass of ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from graph_gemma.graph_model.ascend.ge_graph import GeGraph
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.baseline import naive_graph
from graph_gemma.runners.backends.ascend.printer import count_nodes
from graph_gemma.runners.backends.ascend.roofline import estimate
from graph_gemma.runners.backends.torchair import TorchairBackend
from graph_gemma.runners.inspection.live import recipe_of
from graph_gemma.runners.inspection.text import ESTIMATE, quantity, table
from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.model_settings import ModelSettings, require_torchair, resolve_settings

_TOKENS = 512


@dataclass(frozen=True)
class StepFigures:
    """Figures of one decoder layer and of a whole step; bytes are those of device memory read and written."""

    kernels: int  # of a layer, views not counted
    by_type: dict[str, int]  # nodes of a layer
    layer_bytes: int
    step_bytes: int
    uncounted: int  # nodes of a layer whose bytes are not in the sums, as torchair declares no shape


def compare_with_naive(settings: InferSettings, context_length: int | None) -> str:
    """A table of both. settings: those of infer.py. context_length: tokens of the sequence; None: 512, or as many as
    fit. Raises UserError."""
    resolved = resolve_settings(settings)
    require_torchair(resolved)
    if resolved.quantization is not None:
        raise UserError("compare=naive is about floating point, and the model is quantized. Leave quant out.")
    tokens = min(context_length or _TOKENS, resolved.max_seq_len)
    assert resolved.soc is not None
    steps = measure(resolved, tokens)
    rows = [["one decoder layer", "kernels", "Cast", "Transpose", "moved", "a whole step moves"]]
    for name, step in steps.items():
        copies = [str(step.by_type.get(op_type, 0)) for op_type in ("Cast", "Transpose")]
        moved = [quantity(step.layer_bytes, "B"), quantity(step.step_bytes, "B")]
        rows.append([name, str(step.kernels), *copies, *moved])
    notes = [f"{resolved.soc.product} ({resolved.soc.cann_name}), {resolved.dtype}; bytes: {ESTIMATE}"]
    if standin.is_standin():
        notes.append(standin.BANNER)
    notes += [
        f"{step.uncounted} nodes of a layer declare no shape and are not in the bytes of: {name}"
        for name, step in steps.items()
        if step.uncounted
    ]
    return "\n".join([*table(rows), *(f"  {note}" for note in notes)])


def measure(settings: ModelSettings, tokens: int) -> dict[str, StepFigures]:
    """What is compared, by name: the naive model, and this project's prefill and decode of one sequence."""
    prefill = Bucket("prefill", 1, tokens, 0)
    decode = Bucket("decode", 1, 1, -(-tokens // settings.block_size))
    soc, config = settings.soc, settings.config
    assert soc is not None
    with ExitStack() as resources:
        recipe = recipe_of(replace(settings, dump_dir=None), resources)
        backend = recipe.backend
        assert isinstance(backend, TorchairBackend)

        def own(bucket: Bucket) -> Callable[[GemmaConfig], GeGraph]:
            return lambda config: backend.lower(replace(recipe, config=config).graph(bucket)).graph

        def naive(config: GemmaConfig) -> GeGraph:
            return naive_graph(config, tokens, getattr(torch, settings.dtype))

        return {
            f"transformers, every step ({tokens} tokens)": _figures(naive, config, soc),
            f"graph-gemma, prefill ({tokens} tokens)": _figures(own(prefill), config, soc),
            f"graph-gemma, decode (1 token after {tokens - 1})": _figures(own(decode), config, soc, tokens),
        }


def _figures(
    make: Callable[[GemmaConfig], GeGraph], config: GemmaConfig, soc: Chip, context_length: int | None = None
) -> StepFigures:
    """A layer's figures are the differences of two graphs, one with a layer more; of several kinds, the first's."""
    few = family_of(config).few_layers()
    graphs = [make(few.base), *(make(each.config) for each in few.more)]
    costs = [estimate(graph, soc, context_length) for graph in graphs]
    counts = [count_nodes(graph) for graph in graphs[:2]]
    bytes_more = [cost.total.bytes - costs[0].total.bytes for cost in costs[1:]]
    types = counts[1].by_type
    return StepFigures(
        counts[1].compute - counts[0].compute,
        {name: types[name] - counts[0].by_type.get(name, 0) for name in types},
        bytes_more[0],
        costs[0].total.bytes + sum(each.rest * more for each, more in zip(few.more, bytes_more, strict=True)),
        len(costs[1].uncounted) - len(costs[0].uncounted),
    )
