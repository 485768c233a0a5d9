"""Calibration: run the plain model's decoder layers one at a time and keep the inputs of their linears."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from graph_gemma.graph_model.families import Family, Layer

# Most tokens whose inputs are kept, evenly taken from all.
KEPT_TOKENS = 8192


def embed(family: Family, embedding: Tensor, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The first layer's input for each sequence of token ids, float32 [tokens, hidden_size]."""
    scale = family.embedding_scale(embedding.dtype)
    return [embedding[torch.tensor(ids)].float() * scale for ids in sequences]


def observable(layer: Layer) -> tuple[str, ...]:
    """The first linear of each group, which stands for it: all of a group read the same tensor."""
    return tuple(group.paths[0] for group in layer.groups)


@torch.no_grad()
def run_layer(
    family: Family,
    index: int,
    weights: Mapping[str, Tensor],
    hidden: list[Tensor],
    observed: Collection[str] | None = None,
    attach: Callable[[nn.Module], None] = lambda layer: None,
) -> dict[str, Tensor]:
    """Let each of `hidden` become the layer's output; returns the inputs of `observed`, float32 [kept, channels].

    weights: the layer's parameters by their names within it, float32. hidden: see `embed`. observed: linears, of which
    those that are `observable` are; None: all of these. attach: called with the layer before it runs, to add hooks.
    Memory does not grow with the number of tokens beyond `hidden` itself: `KEPT_TOKENS` are kept of each input.
    """
    with torch.device("meta"):
        layer = family.decoder_layer(index)
    layer.load_state_dict(dict(weights), assign=True)
    total = sum(len(states) for states in hidden)
    step = max(1, -(-total // KEPT_TOKENS))
    kept = {
        name: torch.empty(-(-total // step), weights[f"{name}.weight"].shape[1])
        for name in observable(family.layers[index])
        if observed is None or name in observed
    }
    first = 0  # tokens of the sequences before

    def keep(name: str, x: Tensor) -> None:
        skipped = -first % step
        rows = x[skipped::step]
        start = (first + skipped) // step
        kept[name][start : start + len(rows)] = rows

    for name in kept:
        layer.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0][0]))
    attach(layer)
    for number, states in enumerate(hidden):
        positions = torch.arange(states.shape[0])[None]
        hidden[number] = layer(states[None], *family.layer_arguments(index, positions, torch.float32))[0]
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
