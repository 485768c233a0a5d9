"""GemmaConfig: the shape of a Gemma 1 model, read from config.json or taken from a named size."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graph_model.errors import UserError, shown
from graph_model.foreign import check_adapter, check_other_files, check_quantization_config
from graph_model.json_file import read_json_object
from graph_model.stated import LARGEST_ID, ends_by_file, stated_dtype, token_ids

DTYPES = ("float16", "bfloat16", "float32")
# Sizes are read up to these, far above any Gemma's: a damaged file would take the machine's memory.
_LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 31,
}


@dataclass(frozen=True)
class GemmaConfig:
    """Architecture of a Gemma 1 model; field names are those of Hugging Face's config.json.

    ``head_dim * num_attention_heads`` need not equal ``hidden_size`` (Gemma-7B: 16 * 256 != 3072).
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
    quantize: str | None = None

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores: head_dim ** -0.5."""
        return self.head_dim**-0.5

    @property
    def embedding_scale(self) -> float:
        """Factor on the embeddings, sqrt(hidden_size), before it is rounded to the model's dtype."""
        return math.sqrt(self.hidden_size)

    def to_json(self) -> dict[str, Any]:
        """The fields as Hugging Face writes them; what `from_json` reads back."""
        fields = asdict(self)
        fields["torch_dtype"] = fields.pop("dtype")
        eos = fields.pop("eos_token_ids")
        fields["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos)
        if fields["quantize"] is None:
            del fields["quantize"]
        return {
            "architectures": ["GemmaForCausalLM"],
            "model_type": "gemma",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            **fields,
        }


GEMMA_2B = GemmaConfig(
    hidden_size=2048,
    intermediate_size=16384,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
)
GEMMA_7B = GemmaConfig()


def read_config(checkpoint_dir: Path) -> GemmaConfig:
    """Read the config of a checkpoint directory: ``config.json``, and what else says dtype and ends of answers.

    Raises UserError naming the file and the field.
    """
    path = checkpoint_dir / "config.json"
    if not checkpoint_dir.is_dir():
        raise UserError(
            f"model.path: {checkpoint_dir} is not a directory. Give the directory of a Hugging Face checkpoint "
            "(config.json, *.safetensors and the tokenizer's files)."
        )
    check_adapter(checkpoint_dir)
    if not path.is_file():
        check_other_files(checkpoint_dir)
        raise UserError(
            f"{path} is missing. A checkpoint directory holds the model's config.json; "
            "copy it from the place that the weights came from."
        )
    raw = read_json_object(path)
    if "model_type" not in raw:
        check_other_files(checkpoint_dir)
    dtype, _ = stated_dtype(checkpoint_dir)
    config = from_json({**raw, "dtype": dtype}, source=str(path))
    ends = dict.fromkeys(i for ids in ends_by_file(checkpoint_dir).values() for i in ids)
    return replace(config, eos_token_ids=tuple(ends))


def from_json(raw: dict[str, Any], source: str) -> GemmaConfig:
    """Build a GemmaConfig from the fields of a config.json; `source` names the file in errors."""
    model_type = raw.get("model_type")
    if model_type != "gemma":
        raise UserError(
            f"{source}: model_type is {shown(model_type)}; only 'gemma' (Gemma 1: 2B, 7B and models of their shape) "
            "is supported. Other Gemma generations differ in their norms and attention."
        )
    check_quantization_config(raw, source)
    reader = _FieldReader(raw, source)
    _check_variants(raw, source)
    default = GemmaConfig()
    sizes = {name: reader.size(name, getattr(default, name)) for name in _LARGEST}
    num_heads, num_kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if num_heads % num_kv_heads:
        raise UserError(
            f"{source}: num_attention_heads is {num_heads} and num_key_value_heads {num_kv_heads}; "
            "the first must be a multiple of the second."
        )
    if sizes["head_dim"] % 2:
        raise UserError(f"{source}: head_dim is {sizes['head_dim']}; rotary embedding needs an even head_dim.")
    return GemmaConfig(
        **sizes,
        rms_norm_eps=reader.positive("rms_norm_eps", raw.get("rms_norm_eps", default.rms_norm_eps)),
        rope_theta=_rope_theta(reader, default.rope_theta),
        attention_bias=reader.flag("attention_bias", default.attention_bias),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default.tie_word_embeddings),
        dtype=_dtype(raw, source),
        bos_token_id=_bos(raw, source, default.bos_token_id),
        eos_token_ids=token_ids(raw.get("eos_token_id", default.eos_token_ids[0]), source),
        quantize=_quantize(raw, source),
    )


@dataclass(frozen=True)
class _FieldReader:
    raw: dict[str, Any]
    source: str

    def size(self, name: str, default: int) -> int:
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.source}: {name} is {shown(value)}; it must be an integer of at least 1.")
        if value > _LARGEST[name]:
            raise UserError(
                f"{self.source}: {name} is {value}; no Gemma is that large, the most that is read is {_LARGEST[name]}. "
                "Copy config.json again from the original."
            )
        return value

    def positive(self, name: str, value: Any) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            raise UserError(f"{self.source}: {name} is {shown(value)}; it must be a finite number above 0.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.source}: {name} is {shown(value)}; it must be true or false.")
        return value


def _check_variants(raw: dict[str, Any], source: str) -> None:
    """Refuse what would change the mathematics. Gemma's "gelu" means the tanh form (huggingface #29402)."""
    for name in ("hidden_act", "hidden_activation"):
        value = raw.get(name)
        if value not in (None, "gelu", "gelu_pytorch_tanh"):
            raise UserError(
                f"{source}: {name} is {shown(value)}; Gemma's activation is gelu_pytorch_tanh "
                "(older files say gelu and mean the same)."
            )
    if raw.get("use_bidirectional_attention"):
        raise UserError(f"{source}: use_bidirectional_attention is set; a text generator needs causal attention.")


def _rope_theta(reader: _FieldReader, default: float) -> float:
    """transformers 4 writes rope_theta (and rope_scaling), transformers 5 rope_parameters."""
    raw, source = reader.raw, reader.source
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling")
    for name, value in (("rope_parameters", parameters), ("rope_scaling", scaling or {})):
        if not isinstance(value, dict):
            raise UserError(f"{source}: {name} is {shown(value)}; it must be an object.")
        kind = value.get("rope_type", value.get("type", "default"))
        if kind != "default":
            raise UserError(
                f"{source}: {name} asks for rope type {shown(kind)}; Gemma 1 uses plain rotary embedding ('default')."
            )
    theta = parameters.get("rope_theta", raw.get("rope_theta", default))
    return reader.positive("rope_theta", theta)


def _dtype(raw: dict[str, Any], source: str) -> str:
    """transformers 4 writes torch_dtype, transformers 5 dtype; without either, and without weights, it is float32."""
    value = raw.get("dtype", raw.get("torch_dtype")) or "float32"
    if value not in DTYPES:
        raise UserError(f"{source}: dtype is {shown(value)}; it must be one of {', '.join(DTYPES)}.")
    return value


def _bos(raw: dict[str, Any], source: str, default: int | None) -> int | None:
    value = raw.get("bos_token_id", default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_ID):
        raise UserError(f"{source}: bos_token_id is {shown(value)}; it must be an id or null.")
    return value


def _quantize(raw: dict[str, Any], source: str) -> str | None:
    """The scheme's name, which is part of file names."""
    value = raw.get("quantize")
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value)):
        raise UserError(f"{source}: quantize is {shown(value)}; it must be a scheme's name such as 'w8a8', or null.")
    return value
