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
from graph_model.weights import Source


def capture(config: GemmaConfig, bucket: Bucket, pages: Pages, dtype: torch.dtype) -> ModelGraph:
    """Export the plain model for the bucket's [batch, chunk]: inputs input_ids and positions, output logits.

    Attention stays one node (scaled_dot_product_attention). Weights are placeholders with a Source expression each;
    a tied head shares the embedding's. `pages` is carried along for the pass that adds the caches.
    """
    with FakeTensorMode(), _default_dtype(dtype):
        model = GemmaForCausalLM(config).requires_grad_(False)
        tokens = torch.zeros((bucket.batch, bucket.chunk), dtype=torch.int64)
        program = torch.export.export(model, (tokens, tokens.clone()), strict=False)
    module = program.graph_module
    model_graph = ModelGraph(module, config, bucket, pages, dtype)
    names = dict(program.graph_signature.inputs_to_parameters)
    if config.tie_word_embeddings:
        names = {k: "model.embed_tokens.weight" if v == "lm_head.weight" else v for k, v in names.items()}
    for node in module.graph.nodes:
        node.meta = {"val": node.meta.get("val"), "layer": _layer(node)}
        if node.op == "placeholder":
            node.meta["kind"] = "weight" if node.name in names else "input"
            if node.name in names:
                value = node.meta["val"]
                node.meta["expression"] = Source(names[node.name], tuple(value.shape), value.dtype)
    return model_graph


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
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
