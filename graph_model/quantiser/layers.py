"""Calibration: the plain model's decoder layers, one at a time, and what their linears read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graph_model.config import GemmaConfig
from graph_model.gemma import GemmaDecoderLayer, rotary_tables, round_to_dtype

# The linear of each group that stands for it: all of a group read the same tensor.
OBSERVED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def embed(config: GemmaConfig, embedding: Tensor, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The first layer's input for each sequence of token ids, float32 [tokens, hidden_size]."""
    scale = round_to_dtype(config.embedding_scale, embedding.dtype)
    return [embedding[torch.tensor(ids)].float() * scale for ids in sequences]


@torch.no_grad()
def run_layer(
    config: GemmaConfig, weights: Mapping[str, Tensor], hidden: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The layer's output for each sequence, and the inputs of `OBSERVED`, float32 [tokens of all, channels].

    weights: the layer's parameters by their names within it, float32. hidden: see `embed`.
    """
    with torch.device("meta"):
        layer = GemmaDecoderLayer(config)
    layer.load_state_dict(dict(weights), assign=True)
    seen: dict[str, list[Tensor]] = {name: [] for name in OBSERVED}
    for name, inputs in seen.items():
        layer.get_submodule(name).register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0][0]))
    outputs = []
    for states in hidden:
        positions = torch.arange(states.shape[0])[None]
        cos, sin = rotary_tables(positions, config, torch.float32)
        outputs.append(layer(states[None], cos, sin)[0])
    return outputs, {name: torch.cat(inputs) for name, inputs in seen.items()}
