"""Gemmas that overflow in float16 for texts that hold one token, and for no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from graph_gemma.graph_model.config import GemmaConfig
from support.checkpoints import make_model

POISON = 99  # the token
LAYER = "model.layers.1.mlp.down_proj"  # the linear whose product is beyond 65504


def make_overflowing_model(config: GemmaConfig) -> Any:
    """A random transformers model in float16, of two layers or more; a tied head would answer with the token itself."""
    assert not config.tie_word_embeddings
    model = make_model(config, dtype=torch.float16)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON, 0] = 300.0
        # Numbers of the residual stream that large make this layer's product larger than 65504.
        layer = model.model.layers[1]
        layer.post_attention_layernorm.weight.zero_()
        layer.mlp.gate_proj.weight[0], layer.mlp.up_proj.weight[0] = 0.0, 0.0
        layer.mlp.gate_proj.weight[0, 0] = layer.mlp.up_proj.weight[0, 0] = 10.0
        layer.mlp.down_proj.weight[0, 0] = 30.0
    return model


def make_overflowing_sum(config: GemmaConfig) -> Any:
    """The same, but each branch is below 65504 and only their sum after layer 1, the residual stream, is beyond it."""
    model = make_overflowing_model(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON, 0] = 5000.0
        model.model.layers[1].mlp.down_proj.weight[0, 0] = 8.0
    return model


def make_loud_model(config: GemmaConfig, factor: float) -> Any:
    """A random Gemma 2 or 3 whose branches add up to more than float16 holds, as those of real ones do.

    factor: that of the norms after branches. Weights have values of float16.
    """
    model = make_model(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(factor)
            layer.post_feedforward_layernorm.weight.fill_(factor)
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.float16))
    return model


def save_overflowing_checkpoint(directory: Path, config: GemmaConfig) -> None:
    """The checkpoint of such a model."""
    make_overflowing_model(config).save_pretrained(directory)


def check_message(error: object) -> None:
    """That an error names dtype, layer and way out."""
    for part in ("not finite", "float16", LAYER, "dtype=bfloat16 or dtype=float32"):
        assert part in str(error), error
