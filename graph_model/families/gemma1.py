"""Gemma 1: all layers alike, two norms each, full attention, one rotary base, gated MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graph_model.config import GemmaConfig
from graph_model.families.family import Family
from graph_model.families.layer import Attention, Layer, Linear, LinearGroup, Norm, Rotary, Upstream

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Gemma1(Family):
    """Gemma 2B, 7B and models of their shape (arXiv:2403.08295)."""

    def describe_layers(self) -> tuple[Layer, ...]:
        return (gemma1_layer(self.config),) * self.config.num_hidden_layers

    def embedding_scale(self, dtype: torch.dtype) -> float:
        from graph_model.gemma import round_to_dtype

        return round_to_dtype(self.config.embedding_scale, dtype)

    def model(self) -> nn.Module:
        from graph_model.gemma import GemmaForCausalLM

        return GemmaForCausalLM(self.config)

    def decoder_layer(self, index: int) -> nn.Module:
        from graph_model.gemma import GemmaDecoderLayer

        return GemmaDecoderLayer(self.config)

    def layer_arguments(self, index: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        from graph_model.gemma import rotary_tables

        return rotary_tables(positions, self.config, dtype)

    def of_layers(self, indices: Sequence[int]) -> GemmaConfig:
        return replace(self.config, num_hidden_layers=len(indices))


def gemma1_layer(config: GemmaConfig) -> Layer:
    """Every layer of Gemma 1."""
    hidden, intermediate, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q_size, kv_size = heads * head_dim, kv_heads * head_dim
    attention = Attention(
        path="self_attn",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        softmax_scale=config.softmax_scale,
        rotary=Rotary(config.rope_theta, head_dim),
    )
    qkv = LinearGroup(
        role="qkv",
        linears=(
            Linear("self_attn.q_proj", q_size, hidden, "column", bias),
            Linear("self_attn.k_proj", kv_size, hidden, "kv", bias),
            Linear("self_attn.v_proj", kv_size, hidden, "kv", bias),
        ),
        merged="self_attn.qkv_proj",
        norm="input_layernorm",
    )
    output = LinearGroup(
        role="o",
        linears=(Linear("self_attn.o_proj", hidden, q_size, "row", bias),),
        upstream=Upstream("self_attn.v_proj", (kv_heads, heads // kv_heads, head_dim)),
    )
    gate_up = LinearGroup(
        role="gate_up",
        linears=(
            Linear("mlp.gate_proj", intermediate, hidden, "column"),
            Linear("mlp.up_proj", intermediate, hidden, "column"),
        ),
        merged="mlp.gate_up_proj",
        norm="post_attention_layernorm",
    )
    down = LinearGroup(
        role="down",
        linears=(Linear("mlp.down_proj", hidden, intermediate, "row"),),
        upstream=Upstream("mlp.up_proj", (1, 1, intermediate)),
    )

    def norm(path: str) -> Norm:
        return Norm(path, hidden, config.rms_norm_eps, one_plus=True)

    parts = (norm("input_layernorm"), qkv, output, norm("post_attention_layernorm"), gate_up, down)
    return Layer(attention, parts)
