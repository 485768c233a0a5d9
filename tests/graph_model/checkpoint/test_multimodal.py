"""The text part of multimodal Gemma 3 checkpoints, as transformers 4 and 5 name its tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import write_random_checkpoint
from support.configs import LATER_CONFIGS

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError

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
    assert config == CONFIG
    with pytest.warns(UserWarning, match="2 tensors of multi_modal_projector and vision_tower are not used"):
        opened = open_checkpoint(tmp_path / "model", config)
    with opened as checkpoint:
        assert set(checkpoint.names) == set(expected)
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())


def test_another_family_has_no_vision_tensors(tmp_path: Path) -> None:
    multimodal(tmp_path / "model", "model.", "")
    fields = LATER_CONFIGS["gemma2"].to_json()
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="8 tensors are not part of this model"):
        open_checkpoint(tmp_path / "model", read_config(tmp_path / "model"))
