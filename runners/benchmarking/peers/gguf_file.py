"""Gemma as a GGUF file (the format's description is in ggml's repository, docs/gguf.md)."""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graph_gemma.graph_model.checkpoint import expected_tensors, open_checkpoint
from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig
from graph_gemma.graph_model.gguf.config import MODEL_TYPES, attention_scalar
from graph_gemma.graph_model.gguf.tensors import stored_names

_BLOCK = 32  # numbers that share a scale in Q8_0


def write_gguf(directory: Path, config: GemmaConfig, path: Path, dtype: str, int8: bool) -> None:
    """Write the checkpoint in `directory` as `path`, a tensor at a time, without a vocabulary.

    int8: matrices as Q8_0 (int8 with a scale per 32 numbers of a row), where rows have a multiple of 32 numbers;
    otherwise, and the rest, in `dtype`. Norms are float32 and have the 1 added, as llama.cpp's own converter has them.
    Raises ValueError where llama.cpp would compute another model.
    """
    import gguf

    architecture = next(name for name, model_type in MODEL_TYPES.items() if model_type == config.model_type)
    if reason := _other_model(config):
        raise ValueError(f"llama.cpp's {architecture} {reason}")
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, config)
    names, stored = expected_tensors(config), stored_names(config)
    kinds = {name: _kind(shape, dtype, int8) for name, shape in names.items()}
    for name, shape in names.items():
        size = stored_bytes(shape, dtype, int8)
        writer.add_tensor_info(stored[name], shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with ExitStack() as resources:
        checkpoint = resources.enter_context(open_checkpoint(directory, config))
        for name in names:
            writer.write_tensor_data(_content(checkpoint.read(name), name, kinds[name]))
            checkpoint.release(name)
    writer.close()


def stored_bytes(shape: tuple[int, ...], dtype: str, int8: bool) -> int:
    """Bytes that a tensor takes in the file."""
    import gguf

    return prod(gguf.quant_shape_to_byte_shape(shape, _kind(shape, dtype, int8)))


def _other_model(config: GemmaConfig) -> str:
    """What llama.cpp would compute differently, as no key of a file can tell it; "": nothing."""
    if config.attention_bias:
        return "has no bias on attention's output, and this model's attention_bias is true"
    if not config.tie_word_embeddings and not isinstance(config, Gemma3Config):
        return "has a tied head, and this model's head is its own"
    if isinstance(config, Gemma2Config) and not any(_slides(config)):
        return "has a layer with a window, and this model has none"
    if isinstance(config, Gemma2Config) and None in (config.attn_logit_softcapping, config.final_logit_softcapping):
        return "soft-caps scores and logits, and this model leaves one of them as it is"
    if isinstance(config, Gemma2Config | Gemma3Config):
        scalar = attention_scalar(config.to_json())
        if config.query_pre_attn_scalar != scalar:
            given = config.query_pre_attn_scalar
            return f"computes with query_pre_attn_scalar {scalar} in a model of this shape, and this model's is {given}"
    return ""


def _slides(config: Gemma2Config | Gemma3Config) -> list[bool]:
    """Which layers have a window."""
    return [kind == "sliding_attention" for kind in config.layer_types]


def _describe(writer: Any, config: GemmaConfig) -> None:
    """Write the keys that llama.cpp reads, also those that it has defaults for."""
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    if isinstance(config, Gemma2Config | Gemma3Config):
        slides = _slides(config)
        if any(slides):  # with a window that no layer has, llama.cpp ends the process
            writer.add_sliding_window(config.sliding_window)
            writer.add_sliding_window_pattern(slides)
        if config.final_logit_softcapping is not None:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if isinstance(config, Gemma2Config):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if isinstance(config, Gemma3Config):
        writer.add_rope_freq_base_swa(config.rope_local_base_freq)
        if config.rope_factor != 1.0:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope_factor)


def _kind(shape: tuple[int, ...], dtype: str, int8: bool) -> Any:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return kinds.F32
    if int8 and shape[1] % _BLOCK == 0:
        return kinds.Q8_0
    return {"float32": kinds.F32, "float16": kinds.F16, "bfloat16": kinds.BF16}[dtype]


def _content(tensor: Tensor, name: str, kind: Any) -> np.ndarray:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if name.endswith("norm.weight"):
        return (1.0 + tensor.float()).numpy()
    if kind == kinds.Q8_0:
        return gguf.quants.quantize(tensor.float().numpy(), kind)
    if kind == kinds.BF16:
        return tensor.to(torch.bfloat16).view(torch.int16).numpy()
    return tensor.to(torch.float16 if kind == kinds.F16 else torch.float32).numpy()
