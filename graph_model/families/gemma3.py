"""Gemma 3 text: branches and heads are normed, five sliding layers to a full one, each kind with its rotary base."""

from __future__ import annotations

from typing import ClassVar

from graph_gemma.graph_model.config import Gemma3Config
from graph_gemma.graph_model.families.gemma import GemmaFamily, gemma_attention, gemma_layer
from graph_gemma.graph_model.families.layer import Layer, Rotary


class Gemma3(GemmaFamily):
    """The text models of Gemma 3, 270M to 27B, and models of their shape (arXiv:2503.19786)."""

    config: Gemma3Config
    other_parts: ClassVar[tuple[str, ...]] = ("vision_tower", "multi_modal_projector")

    def describe_layers(self) -> tuple[Layer, ...]:
        config = self.config
        full = Rotary(config.rope_theta, config.head_dim, config.rope_factor)
        sliding = Rotary(config.rope_local_base_freq, config.head_dim)
        attention = {
            "full_attention": gemma_attention(config, full, window=None, softcap=None),
            "sliding_attention": gemma_attention(config, sliding, config.sliding_window, softcap=None),
        }
        return tuple(
            gemma_layer(config, attention[kind], norms_branches=True, norms_heads=True) for kind in config.layer_types
        )
