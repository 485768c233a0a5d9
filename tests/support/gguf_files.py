"""Small GGUF files of random Gemmas with the keys that llama.cpp writes, made by the writer of the package gguf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig, layer_types
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.gguf.tensors import stored_names

F32, F16, BF16 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16"))
SPACE = "\u2581"
CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
USER_DEFINED = ["\n\n", "\n\n\n", "  ", "   ", "<table>"]
LETTERS = ["\n", SPACE, *"abcde", "你"]
# In the order of their scores, the highest first.
MERGED = ["ab", f"{SPACE}a", "abc", "de", "bc", f"{SPACE}ab", "cde", f"{SPACE}{SPACE}a", "abab", "e你", "ee"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# Rows of 256 numbers, so that every type of block fits; what no file states is as llama.cpp takes it.
_SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 256,
    "dtype": "float32",
}
_WINDOWED = {**_SHAPE, "query_pre_attn_scalar": 256, "sliding_window": 8}
CONFIGS: dict[str, GemmaConfig] = {
    "gemma": GemmaConfig(**_SHAPE),
    "gemma2": Gemma2Config(**_WINDOWED, layer_types=layer_types(3, 2)),
    "gemma3": Gemma3Config(**{**_WINDOWED, "num_hidden_layers": 7}, layer_types=layer_types(7, 6)),
}


def write_gguf(
    path: Path,
    config: GemmaConfig,
    blocks: Callable[[str], gguf.GGMLQuantizationType] = lambda stored: F32,
    fields: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Write a random model; returns each tensor under its name in the checkpoint, as the package dequantizes it.

    blocks: the type of each tensor by its stored name; norms are float32. fields: fields besides or in place of the
    usual ones, by their whole name; None leaves one out.
    """
    architecture = config.model_type.removesuffix("_text")
    usual = {
        "general.architecture": architecture,
        **model_fields(config, architecture),
        **vocabulary(config.vocab_size),
    }
    stated = {**usual, **(fields or {})}
    writer = gguf.GGUFWriter(path, stated.pop("general.architecture"))
    for name, value in stated.items():
        if value is not None:
            _add(writer, name, value)
    random = np.random.default_rng(seed)
    written = {}
    shapes = family_of(config).tensors
    for name, stored in stored_names(config).items():
        norm = stored.endswith("norm.weight")
        kind = F32 if norm else blocks(stored)
        values = random.standard_normal(shapes[name], np.float32) * np.float32(0.3 if norm else 0.06) + np.float32(norm)
        data = _quantized(values, kind, random)
        writer.add_tensor(stored, data, raw_dtype=kind)
        written[name] = gguf.dequantize(data, kind) - np.float32(norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _quantized(values: np.ndarray[Any, Any], kind: Any, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Blocks of `values`; where the package only reads a type, of random bytes, below 0x3C so that no float is NaN."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        size, bytes_each = gguf.GGML_QUANT_SIZES[kind]
        return random.integers(0, 0x3C, (values.shape[0], values.shape[1] // size * bytes_each), np.uint8)


def model_fields(config: GemmaConfig, architecture: str) -> dict[str, Any]:
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if isinstance(config, Gemma2Config):
        found["attn_logit_softcapping"] = config.attn_logit_softcapping
        found["final_logit_softcapping"] = config.final_logit_softcapping
    if isinstance(config, Gemma2Config | Gemma3Config):
        found["attention.sliding_window"] = config.sliding_window
    if isinstance(config, Gemma3Config):
        found["rope.freq_base"] = config.rope_theta
        if config.rope_factor != 1:
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
    return {f"{architecture}.{name}": value for name, value in found.items()}


def vocabulary(size: int) -> dict[str, Any]:
    """A small vocabulary of Gemma's kind, filled up to `size` pieces."""
    used = [*CONTROLS, *USER_DEFINED, *LETTERS, *MERGED, *BYTES]
    unused = [f"<unused{index}>" for index in range(size - len(used))]
    ranks = [-float(rank) for rank in range(len(MERGED))]
    least = [-1000.0 - rank for rank in range(len(LETTERS))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*CONTROLS, *USER_DEFINED, *LETTERS, *MERGED, *BYTES, *unused],
        "tokenizer.ggml.scores": [
            *[-1000.0] * (len(CONTROLS) + len(USER_DEFINED)),
            *least,
            *ranks,
            *[0.0] * len(BYTES),
            *[-1000.0] * len(unused),
        ],
        "tokenizer.ggml.token_type": [
            *[3, 3, 3, 2, 3, 3],
            *[4] * len(USER_DEFINED),
            *[1] * (len(LETTERS) + len(MERGED)),
            *[6] * len(BYTES),
            *[3] * len(unused),
        ],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if name == "general.alignment":
        writer.add_custom_alignment(value)
        return
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    (writer.add_array if isinstance(value, list) else kinds[type(value)])(name, value)


def small(config: GemmaConfig) -> GemmaConfig:
    """The same kind of model with rows of 32, for files that are damaged over and over."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "head_dim": 32}
    scalar = {"query_pre_attn_scalar": 32} if isinstance(config, Gemma2Config | Gemma3Config) else {}
    return replace(config, **sizes, **scalar)
