"""Capture: the plain model becomes an FX graph, on fake tensors, with no weights in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses import FakeTensorMode

from graph_model.bucket import Bucket
from graph_model.config import GemmaConfig
from graph_model.gemma import GemmaForCausalLM
from graph_model.graph import ModelGraph, Pages
from graph_model.quantisation import HEAD, Quantisation
from graph_model.quantised_weights import Dequantised, DequantisedBias
from graph_model.weights import Expression, Source


def capture(
    config: GemmaConfig,
    bucket: Bucket,
    pages: Pages,
    dtype: torch.dtype,
    quantisation: Quantisation | None = None,
) -> ModelGraph:
    """Export the plain model for the bucket's [batch, chunk]: inputs input_ids and positions, output logits.

    Attention stays one node (scaled_dot_product_attention). Weights are placeholders with a Source expression each;
    a tied head shares the embedding's. What the checkpoint stores quantised is dequantised, as the plain model is a
    floating-point one. `pages` and `quantisation` are carried along for the passes that add caches and int8.
    """
    with FakeTensorMode(), default_dtype(dtype):
        model = GemmaForCausalLM(config).requires_grad_(False)
        tokens = torch.zeros((bucket.batch, bucket.chunk), dtype=torch.int64)
        program = torch.export.export(model, (tokens, tokens.clone()), strict=False)
    module = program.graph_module
    model_graph = ModelGraph(module, config, bucket, pages, dtype, quantisation)
    names = dict(program.graph_signature.inputs_to_parameters)
    for node in module.graph.nodes:
        node.meta = {"val": node.meta.get("val"), "layer": _layer(node)}
        if node.op == "placeholder":
            node.meta["kind"] = "weight" if node.name in names else "input"
            if node.name in names:
                value = node.meta["val"]
                shape = tuple(value.shape)
                node.meta["expression"] = plain_weight(names[node.name], shape, value.dtype, config, quantisation)
    return model_graph


def plain_weight(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, config: GemmaConfig, quantisation: Quantisation | None
) -> Expression:
    """The expression of a parameter of the plain model, by its name."""
    path, _, kind = name.rpartition(".")
    if quantisation is not None and quantisation.stored and path in quantisation.linears:
        static = quantisation.scheme == "w8a8"
        if kind == "weight":
            return Dequantised(path, shape, dtype, static)
        if static:
            return DequantisedBias(path, shape, dtype)
    if path == HEAD and config.tie_word_embeddings:
        name = "model.embed_tokens.weight"
    return Source(name, shape, dtype)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Floating-point tensors are made in `dtype` unless another is named."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _layer(node: torch.fx.Node) -> str:
    """Path of the innermost module that the node was traced in: model.layers.0.self_attn.q_proj."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self'].") if paths else ""
