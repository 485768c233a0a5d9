"""Capture the plain model as an FX graph with torch.export, on fake tensors, with no weights in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses import FakeTensorMode

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.weights import CheckpointTensor, Expression


def capture(
    config: GemmaConfig,
    bucket: Bucket,
    cache_config: KVCacheConfig,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
) -> ModelGraph:
    """Export the plain model for the bucket's [batch, chunk]: inputs input_ids and positions, output logits.

    Attention stays one node (scaled_dot_product_attention). Weights are placeholders, each with a CheckpointTensor
    as its expression; a tied head shares the embedding's. What the checkpoint stores quantized is dequantized, as the
    plain model is a floating-point one. `cache_config` and `quantization` are carried along for the passes that add
    caches and int8.
    """
    with FakeTensorMode(), default_dtype(dtype):
        model = family_of(config).model().requires_grad_(False)
        head_path = family_of(config).head_path
        if config.tie_word_embeddings and _is_stored_quantized(head_path, quantization):
            # Such a checkpoint has the head apart from the embedding, which is not quantized.
            head = model.get_submodule(head_path)
            head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)  # type: ignore[operator]
        tokens = torch.zeros((bucket.batch, bucket.chunk), dtype=torch.int64)
        program = torch.export.export(model, (tokens, tokens.clone()), strict=False)
    module = program.graph_module
    model_graph = ModelGraph(module, config, bucket, cache_config, dtype, quantization)
    names = dict(program.graph_signature.inputs_to_parameters)
    for node in module.graph.nodes:
        node.meta = {"val": node.meta.get("val"), "layer": _layer(node)}
        if node.op == "placeholder":
            node.meta["kind"] = "weight" if node.name in names else "input"
            if node.name in names:
                value = node.meta["val"]
                shape = tuple(value.shape)
                node.meta["expression"] = plain_weight(names[node.name], shape, value.dtype, config, quantization)
    return model_graph


def plain_weight(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, config: GemmaConfig, quantization: Quantization | None
) -> Expression:
    """The expression of a parameter of the plain model, by its name."""
    path, _, kind = name.rpartition(".")
    scheme = scheme_of(quantization)
    if scheme is not None and _is_stored_quantized(path, quantization):
        return scheme.plain(path, kind, shape, dtype)
    family = family_of(config)
    if path == family.head.paths[0] and config.tie_word_embeddings:
        name = family.embedding
    return CheckpointTensor(name, shape, dtype)


def _is_stored_quantized(path: str, quantization: Quantization | None) -> bool:
    """Whether the checkpoint holds the linear at `path` quantized."""
    return quantization is not None and quantization.stored and path in quantization.linears


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
