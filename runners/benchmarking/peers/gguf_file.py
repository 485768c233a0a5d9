"""Gemma as a GGUF file (the format's description is in ggml's repository, docs/gguf.md)."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graph_model.checkpoint import expected_tensors, open_checkpoint
from graph_model.config import GemmaConfig
from graph_model.gguf.tensors import stored_names

_BLOCK = 32  # numbers that share a scale in Q8_0


def write_gguf(directory: Path, config: GemmaConfig, path: Path, dtype: str, int8: bool) -> None:
    """Write the checkpoint in `directory` as `path`, a tensor at a time, without a vocabulary.

    int8: matrices as Q8_0 (int8 with a scale per 32 numbers of a row), where rows have a multiple of 32 numbers;
    otherwise, and the rest, in `dtype`. Norms are float32 and have the 1 added, as llama.cpp's own converter has them.
    Raises ValueError where llama.cpp's gemma has no place for a tensor.
    """
    import gguf

    if not config.tie_word_embeddings:
        raise ValueError("llama.cpp's gemma has a tied head, and this model's head is its own")
    writer = gguf.GGUFWriter(path, "gemma")
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
    names, stored = expected_tensors(config), stored_names(config)
    kinds = {name: _kind(shape, dtype, int8) for name, shape in names.items()}
    for name, shape in names.items():
        kind, number = kinds[name], np.dtype(np.float32)
        size = gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(stored[name], shape, number, int(np.prod(size)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with ExitStack() as resources:
        checkpoint = resources.enter_context(open_checkpoint(directory, config))
        for name in names:
            writer.write_tensor_data(_content(checkpoint.read(name), name, kinds[name]))
            checkpoint.release(name)
    writer.close()


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
