"""A toy family for tests: Gemma 1 with norms of queries and keys before rotary embedding, as Gemma 3 has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from graph_model.config import GemmaConfig
from graph_model.families import FAMILIES, Layer, Norm
from graph_model.families.gemma1 import Gemma1, gemma1_layer
from graph_model.gemma import GemmaAttention, GemmaDecoderLayer, GemmaForCausalLM, GemmaRMSNorm, rotate


@dataclass(frozen=True)
class ToyConfig(GemmaConfig):
    """A Gemma 1's config, and the window of every second layer; None: there is none."""

    window: int | None = None


class ToyAttention(GemmaAttention):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.q_norm = GemmaRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = GemmaRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (-1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, heads)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, heads)), cos, sin)
        v = self.v_proj(x).unflatten(-1, heads)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        options = {"is_causal": True, "scale": self.softmax_scale, "enable_gqa": True}
        attended = nn.functional.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class ToyDecoderLayer(GemmaDecoderLayer):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.self_attn = ToyAttention(config)


class ToyForCausalLM(GemmaForCausalLM):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model.layers = nn.ModuleList(ToyDecoderLayer(config) for _ in range(config.num_hidden_layers))


class Toy(Gemma1):
    """Four norms per layer, of which two read heads; every second layer may have a window."""

    config: ToyConfig

    def describe_layers(self) -> tuple[Layer, ...]:
        config = self.config
        plain = gemma1_layer(config)

        def norm(name: str) -> Norm:
            return Norm(f"self_attn.{name}", config.head_dim, config.rms_norm_eps, one_plus=True, reads="heads")

        before, qkv, output, *rest = plain.parts
        full = replace(plain, parts=(before, qkv, output, norm("q_norm"), norm("k_norm"), *rest))
        sliding = replace(full, attention=replace(full.attention, window=config.window))
        return tuple((full, sliding)[index % 2] for index in range(config.num_hidden_layers))

    def model(self) -> nn.Module:
        return ToyForCausalLM(self.config)

    def decoder_layer(self, index: int) -> nn.Module:
        return ToyDecoderLayer(self.config)


FAMILIES[ToyConfig] = Toy
