"""Export a bundle of Ascend graphs: lower every bucket, write graphs, weights and manifest."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.checkpoint.writer import save_checkpoint
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import Expression, Read, evaluate
from graph_gemma.runners.backends.ascend import bundle as bundles
from graph_gemma.runners.backends.ascend.bundle import BundleInput, BundleStep
from graph_gemma.runners.backends.ascend.lower import LoweredStep, lower, views_shape
from graph_gemma.runners.backends.ascend.printer import writers
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.io.tokenizer import end_of_answers, find_tokenizer
from graph_gemma.runners.llm.load import LoadedModel, load_model
from graph_gemma.runners.llm.warm_up import reachable_buckets
from graph_gemma.runners.settings.model_settings import ModelSettings


def export_model(
    settings: ModelSettings, directory: Path, *, sample: bool = False, overwrite: bool = False
) -> list[Bucket]:
    """Write a bundle with every bucket that serving under `settings` can come to; returns the buckets.

    Raises UserError; then nothing was written.
    """
    with ExitStack() as resources:
        assert settings.soc is not None
        # The cache is that of the chip, whatever machine exports.
        loaded = load_model(settings, resources, device_memory=settings.soc.rates.memory_bytes)
        longest = [[0] * (settings.max_seq_len - 1)] * settings.max_batch_size
        kinds = [SamplingParams(temperature=t, max_new_tokens=1) for t in ((0, 1) if sample else (0,))]
        wanted = {b: None for kind in kinds for b in reachable_buckets(loaded.model, longest, kind, once=True)}
        files: dict[str, Path | bytes | Callable[[Path], bytes]] = {bundles.DESCRIPTOR: _descriptor()}
        steps: list[BundleStep] = []
        weights: dict[str, Expression] = {}
        for bucket in wanted:
            graph = loaded.model.recipe.graph(bucket)
            lowered = lower(graph)
            steps.append(_step(graph, lowered))
            weights.update({str(expression): expression for expression in graph.weight_plan.values()})
            files[f"{bucket}.pb"] = lowered.serialized
            files[f"{bucket}.pbtxt"] = lowered.pbtxt.encode()
            files[f"{bucket}.options.json"] = json.dumps(lowered.options, indent=1).encode()
        header = _header(settings, loaded)
        files[bundles.MANIFEST] = lambda content: bundles.manifest_json(header, steps, content)
        save_checkpoint(
            directory, _tensors(weights, loaded.read), settings.config.to_json(), files, overwrite=overwrite
        )
    return list(wanted)


def _tensors(weights: dict[str, Expression], read: Read) -> Iterator[tuple[str, Tensor]]:
    """One weight at a time, so that exporting needs no more memory than a shard."""
    for name, expression in weights.items():
        yield name, evaluate([expression], read, torch.device("cpu"))[expression]


def _step(graph: ModelGraph, lowered: LoweredStep) -> BundleStep:
    """The graph's inputs by the names that a bundle gives them."""
    placeholders = graph.graph.find_nodes(op="placeholder")
    ge_graph = lowered.graph
    written = writers(ge_graph)
    inputs = []
    for data, item in zip(ge_graph.inputs(), lowered.inputs, strict=True):
        node = placeholders[item.placeholder]
        kind = node.meta["kind"]
        inputs.append(
            BundleInput(
                kind=kind,
                name=str(node.meta["expression"]) if kind == "weight" else node.name,
                shape=views_shape(node) if item.shape is None else item.shape,
                dtype=str(node.meta["val"].dtype).removeprefix("torch."),
                by_reference=data.name in written,
            )
        )
    return BundleStep(graph.bucket, tuple(inputs), lowered.output_order)


def _header(settings: ModelSettings, loaded: LoadedModel) -> dict[str, object]:
    model, tokenizer = loaded.model, find_tokenizer(settings.checkpoint_dir)
    assert settings.soc is not None
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("graph-gemma", "torch", "torch_npu")},
        "soc": {"name": settings.soc.name, "cann_name": settings.soc.cann_name},
        "lowered": loaded.backend,
        "dtype": settings.dtype,
        "norm": settings.norm,
        "eos_token_ids": sorted({*settings.config.eos_token_ids, *end_of_answers(tokenizer)}),
        "vocab_size": settings.config.vocab_size,
        "serving": {
            "block_size": model.block_size,
            "num_blocks": model.num_blocks,
            "window": model.window,
            "num_window_blocks": model.num_window_blocks,
            "num_scratch_blocks": model.num_scratch_blocks,
            "max_seq_len": model.max_seq_len,
            "buckets": dataclasses.asdict(model.buckets),
        },
    }


def _descriptor() -> bytes:
    from graph_gemma.runners.backends.ascend.engine import model_def

    return bytes(model_def().DESCRIPTOR.file.serialized_pb)
