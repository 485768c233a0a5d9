"""What Gemma 1, 2 and 3 have in common: the plain definition, the names of modules, the order of a layer's parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families.family import Family
from graph_gemma.graph_model.families.layer import Attention, Layer, Linear, LinearGroup, Norm, Rotary, Upstream

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class GemmaFamily(Family):
    """A family that `graph_model/families/definition.py` defines; it adds `describe_layers`."""

    def embedding_scale(self, dtype: torch.dtype) -> float:
        from graph_gemma.graph_model.families.definition import round_to_dtype

        return round_to_dtype(self.config.embedding_scale, dtype)

    def model(self) -> nn.Module:
        from graph_gemma.graph_model.families.definition import GemmaForCausalLM

        return GemmaForCausalLM(self.config, self.layers)

    def decoder_layer(self, index: int) -> nn.Module:
        from graph_gemma.graph_model.families.definition import GemmaDecoderLayer

        return GemmaDecoderLayer(self.config, self.layers[index])

    def layer_arguments(self, index: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        from graph_gemma.graph_model.families.definition import rotary_tables

        return rotary_tables(positions, self.layers[index].attention.rotary, dtype)


def gemma_attention(config: GemmaConfig, rotary: Rotary, window: int | None, softcap: float | None) -> Attention:
    """Attention of a layer, whose numbers of heads the config states for all layers."""
    return Attention(
        path="self_attn",
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        softmax_scale=config.softmax_scale,
        rotary=rotary,
        window=window,
        softcap=softcap,
    )


def gemma_layer(
    config: GemmaConfig, attention: Attention, *, norms_branches: bool = False, norms_heads: bool = False
) -> Layer:
    """A decoder layer with this attention.

    norms_branches: what attention and MLP compute is normed before it is added to the stream, and the norm before the
    MLP has another name. norms_heads: queries and keys are normed before rotary embedding.
    """
    hidden, intermediate, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    heads, kv_heads, head_dim = attention.heads, attention.kv_heads, attention.head_dim
    q_size, kv_size = heads * head_dim, kv_heads * head_dim

    def norm(path: str) -> Norm:
        return Norm(path, hidden, config.rms_norm_eps, one_plus=True)

    def head_norm(path: str) -> Norm:
        return replace(norm(path), size=head_dim, reads="heads")

    def branch_norm(path: str) -> Norm:
        return replace(norm(path), reads="branch")

    before_mlp = "pre_feedforward_layernorm" if norms_branches else "post_attention_layernorm"
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
        norm=before_mlp,
    )
    down = LinearGroup(
        role="down",
        linears=(Linear("mlp.down_proj", hidden, intermediate, "row"),),
        upstream=Upstream("mlp.up_proj", (1, 1, intermediate)),
    )
    return Layer(
        attention,
        (
            norm("input_layernorm"),
            qkv,
            output,
            *([head_norm("self_attn.q_norm"), head_norm("self_attn.k_norm")] if norms_heads else []),
            *([branch_norm("post_attention_layernorm")] if norms_branches else []),
            norm(before_mlp),
            gate_up,
            down,
            *([branch_norm("post_feedforward_layernorm")] if norms_branches else []),
        ),
    )
