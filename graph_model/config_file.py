"""Read a model's config from config.json, in every spelling that transformers wrote it in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig
from graph_gemma.graph_model.config_fields import (
    LARGEST_SIZES,
    FieldReader,
    check_variants,
    fields_of_family,
    read_bos,
    read_dtype,
    read_quantize,
)
from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.foreign import CONVERT_GGUF, check_adapter, check_other_files, check_quantization_config
from graph_gemma.graph_model.json_file import read_json_object
from graph_gemma.graph_model.stated import ends_by_file, stated_dtype, token_ids

_CONFIGS: dict[str, type[GemmaConfig]] = {c.model_type: c for c in (GemmaConfig, Gemma2Config, Gemma3Config)}

# What stands for an image in the prompts of a multimodal Gemma 3, with transformers' defaults.
_IMAGE_TOKENS = {"boi_token_index": 255999, "image_token_index": 262144}


def read_config(checkpoint_dir: Path) -> GemmaConfig:
    """Read the config of a checkpoint directory: ``config.json``, and what else says dtype and ends of answers.

    Raises UserError naming the file and the field.
    """
    path = checkpoint_dir / "config.json"
    if checkpoint_dir.suffix == ".gguf" and checkpoint_dir.is_file():
        raise UserError(f"model.path: {checkpoint_dir} is a GGUF file of llama.cpp, not a directory: {CONVERT_GGUF}.")
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
    if raw.get("model_type") == "gemma3":
        raw = _text_part(raw, source)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CONFIGS:
        raise UserError(
            f"{source}: model_type is {shown(model_type)}; supported are the text models of Gemma 1 ('gemma'), "
            "Gemma 2 ('gemma2') and Gemma 3 ('gemma3_text', and the text part of 'gemma3'). Other Gemma generations "
            "differ in their layers."
        )
    check_quantization_config(raw, source)
    reader = FieldReader(raw, source)
    check_variants(raw, source)
    default = _CONFIGS[model_type]()
    sizes = {name: reader.size(name, getattr(default, name)) for name in LARGEST_SIZES}
    num_heads, num_kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if num_heads % num_kv_heads:
        raise UserError(
            f"{source}: num_attention_heads is {num_heads} and num_key_value_heads {num_kv_heads}; "
            "the first must be a multiple of the second."
        )
    if sizes["head_dim"] % 2:
        raise UserError(f"{source}: head_dim is {sizes['head_dim']}; rotary embedding needs an even head_dim.")
    return replace(
        default,
        **sizes,
        rms_norm_eps=reader.positive("rms_norm_eps", raw.get("rms_norm_eps", default.rms_norm_eps)),
        attention_bias=reader.flag("attention_bias", default.attention_bias),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default.tie_word_embeddings),
        dtype=read_dtype(raw, source),
        bos_token_id=read_bos(raw, source, default.bos_token_id),
        eos_token_ids=token_ids(raw.get("eos_token_id", default.eos_token_ids[0]), source),
        image_token_ids=_image_token_ids(raw, source),
        quantize=read_quantize(raw, source),
        **fields_of_family(reader, default, sizes["num_hidden_layers"]),
    )


def _image_token_ids(raw: dict[str, Any], source: str) -> tuple[int, ...]:
    """The ids at which a multimodal model reads an image: its begin, and the places of its features."""
    return tuple(i for name in _IMAGE_TOKENS for i in token_ids(raw.get(name), source, name))


def _text_part(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields of the text model inside a multimodal Gemma 3, with those that stand outside it."""
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"{source}: text_config is {shown(text)}; it must be an object, the text model's config.")
    outer = {name: value for name, value in raw.items() if not isinstance(value, dict) or "quantization" in name}
    return {**_IMAGE_TOKENS, **outer, "model_type": Gemma3Config.model_type, **text}
