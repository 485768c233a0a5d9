"""Gemma, as its paper defines it: no cache, no parallelism, no quantization, no device.

Whole sequences of token ids go in, logits come out. Parameter names are those of Hugging Face checkpoints and the
numerics those of transformers' ``GemmaForCausalLM``. Everything that makes inference fast is a graph pass.

Gemma: Open Models Based on Gemini Research and Technology, arXiv:2403.08295.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graph_model.config import GemmaConfig


class GemmaForCausalLM(nn.Module):
    """The language model: embedding, decoder layers, final norm and head."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.model = GemmaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [batch, tokens, vocab_size] of ``input_ids`` at ``positions``, both int [batch, tokens]."""
        return self.lm_head(self.model(input_ids, positions))


class GemmaModel(nn.Module):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GemmaDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(input_ids)  # [batch, tokens, hidden_size]
        # The scale is rounded to the model's dtype first: in bfloat16 sqrt(3072) is 55.5.
        hidden = hidden * round_to_dtype(self.config.embedding_scale, hidden.dtype)
        cos, sin = rotary_tables(positions, self.config, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.norm(hidden)


class GemmaDecoderLayer(nn.Module):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GemmaAttention(config)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GemmaMLP(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class GemmaRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in float32 and rounded once."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).to(x.dtype)


class GemmaAttention(nn.Module):
    """Causal attention; key and value heads may be shared by groups of query heads (one head: multi-query)."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.softmax_scale = config.softmax_scale
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (-1, self.head_dim)
        q = rotate(self.q_proj(x).unflatten(-1, heads), cos, sin)  # [batch, tokens, heads, head_dim]
        k = rotate(self.k_proj(x).unflatten(-1, heads), cos, sin)  # [batch, tokens, kv_heads, head_dim]
        v = self.v_proj(x).unflatten(-1, heads)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=True,
        )
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class GemmaMLP(nn.Module):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


def rotary_tables(positions: Tensor, config: GemmaConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [batch, tokens, 1, head_dim]: angles in float32, rounded to ``dtype`` at the end."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    inv_freq = 1.0 / (config.rope_theta**exponent)  # [head_dim / 2]
    angles = positions[:, :, None, None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, tokens, heads, head_dim]; element i is paired with i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def round_to_dtype(value: float, dtype: torch.dtype) -> float:
    """The number nearest to ``value`` that ``dtype`` holds (ties to even), for values in its normal range."""
    fraction, exponent = math.frexp(value)
    precision = 1 - round(math.log2(torch.finfo(dtype).eps))  # significant bits: 8, 11 or 24
    return math.ldexp(round(math.ldexp(fraction, precision)), exponent - precision)
