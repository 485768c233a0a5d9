"""Small Gemma configs that between them differ in everything a config can differ in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig, layer_types

# heads * head_dim = 64 differs from hidden_size = 48, as in Gemma-7B. hidden_size is a multiple of the heads because
# transformers 4.38 asks for that.
_BASE = GemmaConfig(
    vocab_size=256,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=512,
    dtype="float32",
)

TINY_CONFIGS: dict[str, GemmaConfig] = {
    "wide_heads": _BASE,
    "one_kv_head": replace(_BASE, num_key_value_heads=1),
    "grouped_kv_heads": replace(_BASE, num_attention_heads=8, num_key_value_heads=2, head_dim=8),
    "untied_head": replace(_BASE, num_key_value_heads=2, tie_word_embeddings=False),
    "odd_vocabulary": replace(_BASE, vocab_size=251, num_key_value_heads=1),
    "rope_and_eps": replace(_BASE, num_key_value_heads=2, rope_theta=500.0, rms_norm_eps=1e-3),
    "attention_bias": replace(_BASE, num_key_value_heads=2, attention_bias=True),
}

_SHAPE: dict[str, Any] = {
    **{field: getattr(_BASE, field) for field in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")},
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "dtype": "float32",
}

# Gemma 2 and 3 with all that they differ in from Gemma 1: windows shorter than what tests read, a scale that is not
# head_dim ** -0.5, soft-caps that bend, two rotary bases of which one is scaled.
LATER_CONFIGS: dict[str, GemmaConfig] = {
    "gemma2": Gemma2Config(
        **_SHAPE,
        num_key_value_heads=2,
        layer_types=layer_types(3, 2),
        attn_logit_softcapping=4.0,
        final_logit_softcapping=6.0,
    ),
    "gemma3": Gemma3Config(
        **_SHAPE,
        num_key_value_heads=1,
        layer_types=layer_types(3, 3),
        rope_theta=5000.0,
        rope_local_base_freq=100.0,
        rope_factor=8.0,
    ),
}
