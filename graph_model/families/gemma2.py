"""Gemma 2: branches are normed, scores and logits are soft-capped, every second layer sees a window."""

from __future__ import annotations

from graph_gemma.graph_model.config import Gemma2Config
from graph_gemma.graph_model.families.gemma import GemmaFamily, gemma_attention, gemma_layer
from graph_gemma.graph_model.families.layer import Layer, Rotary


class Gemma2(GemmaFamily):
    """Gemma 2 2B, 9B, 27B and models of their shape (arXiv:2408.00118)."""

    config: Gemma2Config

    def describe_layers(self) -> tuple[Layer, ...]:
        config = self.config
        rotary = Rotary(config.rope_theta, config.head_dim)
        windows = {"sliding_attention": config.sliding_window, "full_attention": None}
        return tuple(
            gemma_layer(
                config,
                gemma_attention(config, rotary, windows[kind], config.attn_logit_softcapping),
                norms_branches=True,
            )
            for kind in config.layer_types
        )
