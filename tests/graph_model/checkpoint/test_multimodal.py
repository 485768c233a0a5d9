"""The text part of multimodal Gemma 3 checkpoints, as transformers 4 and 5 name its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import write_random_checkpoint
from support.configs import LATER_CONFIGS

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.admission import check_prompt
from graph_gemma.runners.io.prompts import read_prompts

CONFIG = replace(LATER_CONFIGS["gemma3"], dtype="bfloat16")


def multimodal(directory: Path, text: str, vision: str) -> dict[str, torch.Tensor]:
    """Write a checkpoint of both parts with these prefixes; returns the text model's tensors by their plain names."""
    write_random_checkpoint(directory, CONFIG)
    file = directory / "model.safetensors"
    plain = load_file(file)
    renamed = {name.replace("model.", text, 1): tensor for name, tensor in plain.items()}
    for name in ("vision_tower.vision_model.post_layernorm.weight", "multi_modal_projector.mm_input_projection_weight"):
        renamed[vision + name] = torch.zeros(3)
    save_file(renamed, file)
    fields = CONFIG.to_json()
    outer = {"model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 8}}
    (directory / "config.json").write_text(json.dumps({**outer, "text_config": fields}))
    return plain


@pytest.mark.parametrize(("text", "vision"), [("language_model.model.", ""), ("model.language_model.", "model.")])
def test_the_text_part_is_loaded_and_the_rest_named(text: str, vision: str, tmp_path: Path) -> None:
    expected = multimodal(tmp_path / "model", text, vision)
    config = read_config(tmp_path / "model")
    assert config == replace(CONFIG, image_token_ids=(255999, 262144))
    with pytest.warns(UserWarning, match="2 tensors of multi_modal_projector and vision_tower are not used"):
        opened = open_checkpoint(tmp_path / "model", config)
    with opened as checkpoint:
        assert set(checkpoint.names) == set(expected)
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())


def of_a_command(prompt: list[int], config: GemmaConfig) -> None:
    read_prompts(prompt_token_ids=[prompt], tokenizer=None, config=config, max_seq_len=64)


def of_the_library(prompt: list[int], config: GemmaConfig) -> None:
    check_prompt(prompt, 64, config.vocab_size, config.image_token_ids)


@pytest.mark.parametrize("check", [of_a_command, of_the_library])
def test_an_image_in_a_prompt_is_refused(check: Callable[[list[int], GemmaConfig], None], tmp_path: Path) -> None:
    """By the ids that config.json names."""
    multimodal(tmp_path, "model.language_model.", "model.")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "boi_token_index": 40, "image_token_index": 41}))
    config = read_config(tmp_path)
    assert config.image_token_ids == (40, 41)
    for prompt in ([5, 40, 7], [41]):
        with pytest.raises(UserError, match=rf"token id {max(prompt)} stands for an image .* images are not read"):
            check(prompt, config)
    check([5, 42], config)


def test_another_family_has_no_vision_tensors(tmp_path: Path) -> None:
    multimodal(tmp_path / "model", "model.", "")
    fields = LATER_CONFIGS["gemma2"].to_json()
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="8 tensors are not part of this model"):
        open_checkpoint(tmp_path / "model", read_config(tmp_path / "model"))
