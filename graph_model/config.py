"""GemmaConfig: the shape of a Gemma model, as config.json states it or a named size has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = ("float16", "bfloat16", "float32")
LayerType = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class GemmaConfig:
    """Architecture of a Gemma 1 model; field names are those of Hugging Face's config.json.

    `head_dim * num_attention_heads` need not equal `hidden_size` (Gemma-7B: 16 * 256 != 3072).
    """

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    dtype: str = "bfloat16"
    bos_token_id: int | None = 2
    eos_token_ids: tuple[int, ...] = (1,)
    image_token_ids: tuple[int, ...] = ()  # of a multimodal checkpoint: what stands for an image in its prompts
    quantize: str | None = None

    model_type: ClassVar[str] = "gemma"
    architecture: ClassVar[str] = "GemmaForCausalLM"

    @property
    def logit_softcap(self) -> float | None:
        """Logits become cap * tanh(logit / cap); None: they do not."""
        return None

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores: head_dim ** -0.5."""
        return self.head_dim**-0.5

    @property
    def embedding_scale(self) -> float:
        """Factor on the embeddings, sqrt(hidden_size), before it is rounded to the model's dtype."""
        return math.sqrt(self.hidden_size)

    def of_layers(self, indices: Sequence[int]) -> Self:
        """The config of a model that has these layers only."""
        return replace(self, num_hidden_layers=len(indices))

    def to_json(self) -> dict[str, Any]:
        """The fields as Hugging Face writes them; what `from_json` reads back."""
        fields = asdict(self)
        fields["torch_dtype"] = fields.pop("dtype")
        eos = fields.pop("eos_token_ids")
        del fields["image_token_ids"]  # they are of the checkpoint around the text model
        fields["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos)
        if fields["quantize"] is None:
            del fields["quantize"]
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            **fields,
        }


@dataclass(frozen=True)
class _SlidingConfig(GemmaConfig):
    """What Gemma 2 and 3 have besides: layers whose attention sees a window, and a scale of their own."""

    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    query_pre_attn_scalar: int = 256
    sliding_window: int = 4096  # keys that a query of a sliding layer sees, its own included
    layer_types: tuple[LayerType, ...] = ()  # of every layer
    final_logit_softcapping: float | None = None

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores: query_pre_attn_scalar ** -0.5."""
        return self.query_pre_attn_scalar**-0.5

    @property
    def logit_softcap(self) -> float | None:
        return self.final_logit_softcapping

    def of_layers(self, indices: Sequence[int]) -> Self:
        types = tuple(self.layer_types[index] for index in indices)
        return replace(self, num_hidden_layers=len(indices), layer_types=types)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "layer_types": list(self.layer_types)}


@dataclass(frozen=True)
class Gemma2Config(_SlidingConfig):
    """Architecture of a Gemma 2 model (arXiv:2408.00118)."""

    attn_logit_softcapping: float | None = 50.0  # of attention's scores
    final_logit_softcapping: float | None = 30.0

    model_type: ClassVar[str] = "gemma2"
    architecture: ClassVar[str] = "Gemma2ForCausalLM"


@dataclass(frozen=True)
class Gemma3Config(_SlidingConfig):
    """Architecture of a Gemma 3 text model (arXiv:2503.19786); rope_theta is that of full layers."""

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    rope_theta: float = 1e6
    rope_local_base_freq: float = 1e4  # rope_theta of sliding layers
    rope_factor: float = 1.0  # of linear scaling in full layers

    model_type: ClassVar[str] = "gemma3_text"
    architecture: ClassVar[str] = "Gemma3ForCausalLM"

    def to_json(self) -> dict[str, Any]:
        fields = super().to_json()
        factor = fields.pop("rope_factor")
        return {**fields, "rope_scaling": None if factor == 1.0 else {"rope_type": "linear", "factor": factor}}


def layer_types(count: int, period: int) -> tuple[LayerType, ...]:
    """The types of `count` layers of which every `period`-th is full, the others sliding."""
    return tuple("full_attention" if (index + 1) % period == 0 else "sliding_attention" for index in range(count))


_C = TypeVar("_C", bound=_SlidingConfig)

GEMMA_2B = GemmaConfig(
    hidden_size=2048,
    intermediate_size=16384,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
)
GEMMA_7B = GemmaConfig()


def _named(
    kind: type[_C], period: int, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, **other: Any
) -> _C:
    """A named size of Gemma 2 or 3, of whose layers every `period`-th is full."""
    return kind(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        layer_types=layer_types(layers, period),
        **other,
    )


_gemma2 = partial(_named, Gemma2Config, 2)
_gemma3 = partial(_named, Gemma3Config, 6)
_LARGE = {"sliding_window": 1024, "rope_factor": 8.0}
_SMALL = {"vocab_size": 262144, "sliding_window": 512, "max_position_embeddings": 32768}

NAMED_CONFIGS: dict[str, GemmaConfig] = {
    "gemma_2b": GEMMA_2B,
    "gemma_7b": GEMMA_7B,
    "gemma2_2b": _gemma2(26, 2304, 9216, 8, 4),
    "gemma2_9b": _gemma2(42, 3584, 14336, 16, 8),
    "gemma2_27b": _gemma2(46, 4608, 36864, 32, 16, head_dim=128, query_pre_attn_scalar=144),
    "gemma3_270m": _gemma3(18, 640, 2048, 4, 1, **_SMALL),
    "gemma3_1b": _gemma3(26, 1152, 6912, 4, 1, **_SMALL),
    "gemma3_4b": _gemma3(34, 2560, 10240, 8, 4, **_LARGE),
    "gemma3_12b": _gemma3(48, 3840, 15360, 16, 8, **_LARGE),
    "gemma3_27b": _gemma3(62, 5376, 21504, 32, 16, **_LARGE, head_dim=128, query_pre_attn_scalar=168),
}
