"""The GGUF file that llama.cpp gets: it says all of a model, and a model that llama.cpp would change is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

from support.checkpoints import write_random_checkpoint
from support.configs import LATER_CONFIGS, TINY_CONFIGS

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.gguf.config import read_config
from graph_gemma.graph_model.gguf.header import read_header
from graph_gemma.graph_model.gguf.tensors import check_tensors, read_tensors
from graph_gemma.runners.benchmarking.peers.gguf_file import write_gguf

GEMMA2, GEMMA3 = (replace(config, query_pre_attn_scalar=16) for config in LATER_CONFIGS.values())  # type: ignore[call-arg]
SLIDING, FULL = "sliding_attention", "full_attention"


def but(config: GemmaConfig, **changed: Any) -> GemmaConfig:
    return replace(config, **changed)


def layers_of_27b(config: GemmaConfig, count: int) -> GemmaConfig:
    shape = {"hidden_size": 48, "num_attention_heads": 4, "query_pre_attn_scalar": 12}
    return but(config, num_hidden_layers=count, layer_types=(SLIDING,) * count, **shape)


@pytest.mark.parametrize(
    "config",
    [
        TINY_CONFIGS["rope_and_eps"],
        GEMMA2,
        GEMMA3,
        but(GEMMA2, layer_types=(FULL, SLIDING, FULL)),
        but(GEMMA3, layer_types=(FULL, FULL, SLIDING), final_logit_softcapping=7.0, rope_factor=1.0),
        but(GEMMA3, layer_types=(SLIDING,) * 3),
        but(GEMMA3, layer_types=(FULL,) * 3, sliding_window=1),  # which is then not stated
        but(GEMMA3, tie_word_embeddings=False),
        layers_of_27b(GEMMA2, 46),
        layers_of_27b(GEMMA3, 62),
    ],
    ids=[
        "gemma",
        "gemma2",
        "gemma3",
        "pattern of 2",
        "pattern of 3",
        "sliding",
        "full",
        "head",
        "27B of 2",
        "27B of 3",
    ],
)
def test_the_file_says_all_of_the_model(config: GemmaConfig, tmp_path: Path) -> None:
    """As the reader of such files, which takes what is not stated as llama.cpp does, finds it."""
    write_random_checkpoint(tmp_path / "weights", config)
    write_gguf(tmp_path / "weights", config, tmp_path / "m.gguf", "float32", int8=False)
    header = read_header(tmp_path / "m.gguf")
    assert read_config(header, "float32") == config
    check_tensors(header, config)
    with open_checkpoint(tmp_path / "weights", config) as checkpoint:
        for name, tensor in read_tensors(header, config):
            torch.testing.assert_close(tensor, checkpoint.read(name), rtol=0, atol=2.0**-23)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TINY_CONFIGS["untied_head"], "llama.cpp's gemma has a tied head"),
        (but(GEMMA2, tie_word_embeddings=False), "llama.cpp's gemma2 has a tied head"),
        (TINY_CONFIGS["attention_bias"], "llama.cpp's gemma has no bias"),
        (but(GEMMA3, attention_bias=True), "llama.cpp's gemma3 has no bias"),
        (but(GEMMA2, attn_logit_softcapping=None), "gemma2 soft-caps scores and logits"),
        (but(GEMMA2, final_logit_softcapping=None), "gemma2 soft-caps scores and logits"),
        (but(GEMMA2, layer_types=(FULL,) * 3), "gemma2 has a layer with a window, and this model has none"),
        (LATER_CONFIGS["gemma2"], "query_pre_attn_scalar 16 in a model of this shape, and this model's is 24"),
        (LATER_CONFIGS["gemma3"], "query_pre_attn_scalar 16 in a model of this shape, and this model's is 24"),
        (but(layers_of_27b(GEMMA3, 62), query_pre_attn_scalar=16), "query_pre_attn_scalar 12 in .* this model's is 16"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: GemmaConfig, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        write_gguf(tmp_path, config, tmp_path / "m.gguf", "float32", int8=False)
    assert not (tmp_path / "m.gguf").exists()
