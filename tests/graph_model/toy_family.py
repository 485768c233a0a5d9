"""A toy family for tests: Gemma 1 with norms of queries and keys, and a window in every second layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import FAMILIES, Layer
from graph_gemma.graph_model.families.definition import GemmaForCausalLM
from graph_gemma.graph_model.families.gemma import GemmaFamily, gemma_attention, gemma_layer
from graph_gemma.graph_model.families.layer import Rotary


@dataclass(frozen=True)
class ToyConfig(GemmaConfig):
    """A Gemma 1's config, and the window of every second layer; None: there is none."""

    window: int | None = None


class ToyForCausalLM(GemmaForCausalLM):
    """Gemma with the toy's layers: norms of heads and windows are what the definition reads from the description."""


class Toy(GemmaFamily):
    """Four norms per layer, of which two read heads; every second layer may have a window."""

    config: ToyConfig

    def describe_layers(self) -> tuple[Layer, ...]:
        config = self.config
        rotary = Rotary(config.rope_theta, config.head_dim)

        def layer(window: int | None) -> Layer:
            return gemma_layer(config, gemma_attention(config, rotary, window, softcap=None), norms_heads=True)

        return tuple(layer((None, config.window)[index % 2]) for index in range(config.num_hidden_layers))

    def model(self) -> nn.Module:
        return ToyForCausalLM(self.config, self.layers)


FAMILIES[ToyConfig] = Toy
