"""Fields of config.json, checked: a damaged or unknown one is an error that names the file and the field."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any, get_args

from graph_gemma.graph_model.config import DTYPES, Gemma2Config, Gemma3Config, GemmaConfig, LayerType, layer_types
from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.stated import LARGEST_ID

# Far above any Gemma's: what is above is a damaged file, and would take the machine's memory before it is found out.
LARGEST_SIZES = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 31,
}
_LARGEST = {
    **LARGEST_SIZES,
    "query_pre_attn_scalar": 1 << 31,
    "sliding_window": 1 << 31,
    "sliding_window_pattern": 1 << 31,
}
_GENERATIONS = {"gemma": "Gemma 1", "gemma2": "Gemma 2", "gemma3_text": "Gemma 3"}


@dataclass(frozen=True)
class FieldReader:
    """The fields of a config.json; a field that is not as it must be is a UserError naming the file and the field."""

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

    def optional_positive(self, name: str, default: float | None) -> float | None:
        value = self.raw.get(name, default)
        return None if value is None else self.positive(name, value)

    def object(self, name: str, value: Any) -> dict[str, Any]:
        """`value` of a field `name` that must be an object or null."""
        if not isinstance(value, dict | None):
            raise UserError(f"{self.source}: {name} is {shown(value)}; it must be an object.")
        return value or {}

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.source}: {name} is {shown(value)}; it must be true or false.")
        return value


def check_variants(raw: dict[str, Any], source: str) -> None:
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


def fields_of_family(reader: FieldReader, default: GemmaConfig, num_layers: int) -> dict[str, Any]:
    """Rotary embedding of every family, and what Gemma 2 and 3 have besides Gemma 1; `default` says which it is."""
    if isinstance(default, Gemma3Config):
        return {**_gemma3_rotary(reader, default), **_sliding(reader, default, num_layers, period=6)}
    found = [_rotary(reader, name, reader.raw.get(name), default) for name in ("rope_parameters", "rope_scaling")]
    theta = found[0].get("rope_theta", reader.raw.get("rope_theta", default.rope_theta))
    fields: dict[str, Any] = {"rope_theta": reader.positive("rope_theta", theta)}
    if isinstance(default, Gemma2Config):
        fields["attn_logit_softcapping"] = reader.optional_positive(
            "attn_logit_softcapping", default.attn_logit_softcapping
        )
        fields.update(_sliding(reader, default, num_layers, period=2))
    return fields


def _gemma3_rotary(reader: FieldReader, default: Gemma3Config) -> dict[str, Any]:
    """transformers 4 writes rope_theta, rope_local_base_freq and rope_scaling, 5 rope_parameters by layer type."""
    raw = reader.raw
    nested = reader.object("rope_parameters", raw.get("rope_parameters"))
    full = _rotary(reader, "rope_parameters.full_attention", nested.get("full_attention"), default, linear=True)
    sliding = _rotary(reader, "rope_parameters.sliding_attention", nested.get("sliding_attention"), default)
    scaling = _rotary(reader, "rope_scaling", raw.get("rope_scaling"), default, linear=True)
    if nested.keys() - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"{reader.source}: rope_parameters has {shown(sorted(nested))}; Gemma 3 has those of full_attention and of "
            "sliding_attention."
        )
    theta = full.get("rope_theta", raw.get("rope_theta", default.rope_theta))
    local = sliding.get("rope_theta", raw.get("rope_local_base_freq", default.rope_local_base_freq))
    if raw.get("attn_logit_softcapping") is not None:
        raise UserError(
            f"{reader.source}: attn_logit_softcapping is {shown(raw['attn_logit_softcapping'])}; Gemma 3 has none, and "
            "transformers does not apply it. Set it to null."
        )
    return {
        "rope_theta": reader.positive("rope_theta", theta),
        "rope_local_base_freq": reader.positive("rope_local_base_freq", local),
        "rope_factor": reader.positive("factor", full.get("factor", scaling.get("factor", 1.0))),
    }


def _rotary(reader: FieldReader, name: str, value: Any, default: GemmaConfig, linear: bool = False) -> dict[str, Any]:
    """The rotary settings at `name`; plain ones, or with `linear` those of linear scaling."""
    fields = reader.object(name, value)
    kind = fields.get("rope_type", fields.get("type", "default"))
    known = ("default", "linear") if linear else ("default",)
    if kind not in known:
        raise UserError(
            f"{reader.source}: {name} asks for rope type {shown(kind)}; {_GENERATIONS[default.model_type]} uses "
            f"{'plain or linearly scaled' if linear else 'plain'} rotary embedding "
            f"({' or '.join(map(repr, known))})."
        )
    if kind == "default":
        return {key: item for key, item in fields.items() if key != "factor"}
    return {"factor": None, **fields}  # which must then be stated


def _sliding(reader: FieldReader, default: Gemma2Config | Gemma3Config, num_layers: int, period: int) -> dict[str, Any]:
    """Which layers are sliding, and how. period: of the full layers, where the file does not state it."""
    raw, source = reader.raw, reader.source
    types = raw.get("layer_types")
    if types is None:
        if isinstance(default, Gemma3Config):
            period = reader.size("sliding_window_pattern", period)
        types = layer_types(num_layers, period)
    known = get_args(LayerType)
    if not isinstance(types, list | tuple) or any(kind not in known for kind in types):
        raise UserError(f"{source}: layer_types is {shown(types)}; it must be a list of {' and '.join(known)}.")
    if len(types) != num_layers:
        raise UserError(
            f"{source}: layer_types has {len(types)} entries and num_hidden_layers is {num_layers}; each layer has one."
        )
    return {
        "layer_types": tuple(types),
        "sliding_window": reader.size("sliding_window", default.sliding_window),
        "query_pre_attn_scalar": reader.size("query_pre_attn_scalar", default.query_pre_attn_scalar),
        "final_logit_softcapping": reader.optional_positive("final_logit_softcapping", default.final_logit_softcapping),
    }


def read_dtype(raw: dict[str, Any], source: str) -> str:
    """transformers 4 writes torch_dtype, transformers 5 dtype; without either, and without weights, it is float32."""
    value = raw.get("dtype", raw.get("torch_dtype")) or "float32"
    if value not in DTYPES:
        raise UserError(f"{source}: dtype is {shown(value)}; it must be one of {', '.join(DTYPES)}.")
    return value


def read_bos(raw: dict[str, Any], source: str, default: int | None) -> int | None:
    value = raw.get("bos_token_id", default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_ID):
        raise UserError(f"{source}: bos_token_id is {shown(value)}; it must be an id or null.")
    return value


def read_quantize(raw: dict[str, Any], source: str) -> str | None:
    """The scheme's name, which is part of file names."""
    value = raw.get("quantize")
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value)):
        raise UserError(f"{source}: quantize is {shown(value)}; it must be a scheme's name such as 'w8a8', or null.")
    return value
