"""Gemma 1: all layers alike, two norms each, full attention, one rotary base, gated MLP."""

from __future__ import annotations

from graph_gemma.graph_model.families.gemma import GemmaFamily, gemma_attention, gemma_layer
from graph_gemma.graph_model.families.layer import Layer, Rotary


class Gemma1(GemmaFamily):
    """Gemma 2B, 7B and models of their shape (arXiv:2403.08295)."""

    def describe_layers(self) -> tuple[Layer, ...]:
        config = self.config
        attention = gemma_attention(config, Rotary(config.rope_theta, config.head_dim), window=None, softcap=None)
        return (gemma_layer(config, attention),) * config.num_hidden_layers
