"""Gemma 1, 2 and 3, as their papers define them: no cache, no parallelism, no quantization, no device.

Whole sequences of token ids go in, logits come out. Parameter names are those of Hugging Face checkpoints and the
numerics those of transformers' `GemmaForCausalLM`, `Gemma2ForCausalLM` and `Gemma3ForCausalLM`. What the models differ
in is read from the description of each layer. Everything that makes inference fast is a graph pass.

arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families.layer import Attention, Layer, Norm, Rotary


class GemmaForCausalLM(nn.Module):
    """The language model: embedding, decoder layers, final norm and head."""

    def __init__(self, config: GemmaConfig, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.model = GemmaModel(config, layers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.softcap = config.logit_softcap
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [batch, tokens, vocab_size] of `input_ids` at `positions`, both int [batch, tokens]."""
        logits = self.lm_head(self.model(input_ids, positions))
        return logits if self.softcap is None else softcap(logits, self.softcap)


class GemmaModel(nn.Module):
    def __init__(self, config: GemmaConfig, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.config = config
        self.rotaries = [layer.attention.rotary for layer in layers]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GemmaDecoderLayer(config, layer) for layer in layers)
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(input_ids)  # [batch, tokens, hidden_size]
        # The scale is rounded to the model's dtype first: in bfloat16 sqrt(3072) is 55.5.
        hidden = hidden * round_to_dtype(self.config.embedding_scale, hidden.dtype)
        tables = {rotary: rotary_tables(positions, rotary, hidden.dtype) for rotary in dict.fromkeys(self.rotaries)}
        for layer, rotary in zip(self.layers, self.rotaries, strict=True):
            hidden = layer(hidden, *tables[rotary])
        return self.norm(hidden)


class GemmaDecoderLayer(nn.Module):
    """Attention and MLP, each with a norm before it and, where the family norms its branches, one after it."""

    def __init__(self, config: GemmaConfig, layer: Layer) -> None:
        super().__init__()
        norms = {norm.path: norm for norm in layer.norms}
        self.norms_branches = any(norm.reads == "branch" for norm in layer.norms)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GemmaAttention(config, layer.attention, norms)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        if self.norms_branches:
            self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GemmaMLP(config)
        if self.norms_branches:
            self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden), cos, sin)
        if not self.norms_branches:
            hidden = hidden + attended
            return hidden + self.mlp(self.post_attention_layernorm(hidden))
        hidden = hidden + self.post_attention_layernorm(attended)
        return hidden + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(hidden)))


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

    def __init__(self, config: GemmaConfig, attention: Attention, norms: dict[str, Norm]) -> None:
        super().__init__()
        self.attention = attention
        q_size, kv_size = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_bias)
        norms_heads = f"{attention.path}.q_norm" in norms
        self.q_norm, self.k_norm = (
            GemmaRMSNorm(attention.head_dim, config.rms_norm_eps) if norms_heads else nn.Identity() for _ in "qk"
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (-1, self.attention.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, heads)), cos, sin)  # [batch, tokens, heads, head_dim]
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, heads)), cos, sin)  # [batch, tokens, kv_heads, head_dim]
        v = self.v_proj(x).unflatten(-1, heads)
        attended = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.attention)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class GemmaMLP(nn.Module):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


def attend(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """Causal attention of q [batch, heads, tokens, head_dim] over k and v [batch, kv_heads, tokens, head_dim].

    With a window of W a query sees W keys, its own included. A soft-cap bounds the scores before they are masked.
    """
    scale, window, cap = attention.softmax_scale, attention.window, attention.softcap
    if window is None and cap is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    steps = torch.arange(q.shape[2], device=q.device)
    visible = steps <= steps[:, None]
    if window is not None:
        visible = visible & (steps > steps[:, None] - window)
    if cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
    group = attention.heads // attention.kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = softcap(torch.matmul(q, k.transpose(2, 3)) * scale, cap)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1, dtype=torch.float32)
    return torch.matmul(weights.to(q.dtype), v)


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): numbers that lie between -cap and cap."""
    return torch.tanh(x / cap) * cap


def rotary_tables(positions: Tensor, rotary: Rotary, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [batch, tokens, 1, head_dim]: angles in float32, rounded to `dtype` at the end."""
    exponent = torch.arange(0, rotary.size, 2, dtype=torch.float32, device=positions.device) / rotary.size
    inv_freq = 1.0 / (rotary.base**exponent)  # [head_dim / 2]
    if rotary.factor != 1.0:
        inv_freq = inv_freq / rotary.factor
    angles = positions[:, :, None, None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, tokens, heads, head_dim]; element i is paired with i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def round_to_dtype(value: float, dtype: torch.dtype) -> float:
    """The number nearest to `value` that `dtype` holds (ties to even), for values in its normal range."""
    fraction, exponent = math.frexp(value)
    precision = 1 - round(math.log2(torch.finfo(dtype).eps))  # significant bits: 8, 11 or 24
    return math.ldexp(round(math.ldexp(fraction, precision)), exponent - precision)
