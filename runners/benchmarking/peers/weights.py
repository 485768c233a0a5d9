"""The weights that peers read: a Hugging Face directory, written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.checkpoint import expected_tensors
from graph_gemma.graph_model.checkpoint.writer import save_checkpoint
from graph_gemma.runners.llm.load import open_weights
from graph_gemma.runners.settings.model_settings import ModelSettings

_SHARD_BYTES = 1_000_000_000  # as much is held at once
_UNKNOWN = "<unk>"


def write_weights(settings: ModelSettings, directory: Path) -> None:
    """The model of `settings` in its dtype, with a tokenizer that has a word per token id.

    Its weights must be floating-point ones, or random. Raises UserError.
    """
    dtype = getattr(torch, settings.dtype)
    config = replace(settings.config, dtype=settings.dtype, quantize=None)
    with ExitStack() as resources:
        read = open_weights(replace(settings, quantization=None), resources)

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in expected_tensors(config):
                yield name, read(name).to(dtype)

        files = {"tokenizer.json": _tokenizer(config.vocab_size), "tokenizer_config.json": _TOKENIZER_CONFIG}
        save_checkpoint(directory, tensors(), config.to_json(), files, max_shard_bytes=_SHARD_BYTES)


def word(token_id: int) -> str:
    """The word of a token id in the tokenizer that `write_weights` writes."""
    return f"t{token_id}"


_TOKENIZER_CONFIG = json.dumps(
    {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": _UNKNOWN, "eos_token": "t1", "bos_token": "t2"}
).encode()


def _tokenizer(vocab_size: int) -> bytes:
    vocabulary = {word(index): index for index in range(vocab_size)}
    vocabulary[_UNKNOWN] = vocabulary.pop(word(0))
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": _UNKNOWN},
    }
    return json.dumps(tokenizer).encode()
