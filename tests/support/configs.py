"""Small Gemma configs that between them differ in everything a config can differ in."""

from __future__ import annotations

from dataclasses import replace

from graph_model.config import GemmaConfig

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
