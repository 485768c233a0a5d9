"""Calibration: the plain model's decoder layers, one at a time, and what their linears read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from graph_model.config import GemmaConfig
from graph_model.gemma import GemmaDecoderLayer, rotary_tables, round_to_dtype

# The linear of each group that stands for it: all of a group read the same tensor.
OBSERVED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
# Most tokens whose inputs are kept, evenly taken from all.
KEPT_TOKENS = 8192


def embed(config: GemmaConfig, embedding: Tensor, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The first layer's input for each sequence of token ids, float32 [tokens, hidden_size]."""
    scale = round_to_dtype(config.embedding_scale, embedding.dtype)
    return [embedding[torch.tensor(ids)].float() * scale for ids in sequences]


@torch.no_grad()
def run_layer(
    config: GemmaConfig, weights: Mapping[str, Tensor], hidden: list[Tensor], observed: Collection[str] = OBSERVED
) -> dict[str, Tensor]:
    """Let each of `hidden` become the layer's output; returns the inputs of `observed`, float32 [kept, channels].

    weights: the layer's parameters by their names within it, float32. hidden: see `embed`. observed: of `OBSERVED`.
    Memory does not grow with the number of tokens beyond `hidden` itself: `KEPT_TOKENS` are kept of each input.
    """
    with torch.device("meta"):
        layer = GemmaDecoderLayer(config)
    layer.load_state_dict(dict(weights), assign=True)
    total = sum(len(states) for states in hidden)
    step = max(1, -(-total // KEPT_TOKENS))
    kept = {
        name: torch.empty(-(-total // step), weights[f"{name}.weight"].shape[1])
        for name in OBSERVED
        if name in observed
    }
    first = 0  # tokens of the sequences before

    def keep(name: str, x: Tensor) -> None:
        skipped = -first % step
        rows = x[skipped::step]
        start = (first + skipped) // step
        kept[name][start : start + len(rows)] = rows

    for name in kept:
        layer.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0][0]))
    for index, states in enumerate(hidden):
        positions = torch.arange(states.shape[0])[None]
        cos, sin = rotary_tables(positions, config, torch.float32)
        hidden[index] = layer(states[None], cos, sin)[0]
        first += len(states)
    return kept


def kept_tokens(hidden: Sequence[Tensor]) -> Tensor:
    """The tokens of all sequences that are kept, [kept, channels]."""
    step = max(1, -(-sum(len(states) for states in hidden) // KEPT_TOKENS))
    first, rows = 0, []
    for states in hidden:
        rows.append(states[-first % step :: step])
        first += len(states)
    return torch.cat(rows)
