"""Weights that hold NaN or infinity, or that a dtype cannot hold, are refused by name when they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.numerics import is_finite
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.engine import SamplingParams
from graph_gemma.runners.llm import LLM

NAME = "model.layers.1.mlp.up_proj.weight"


def changed_demo(folder: Path, value: float) -> Path:
    """The demo with one number of one weight replaced."""
    shutil.copytree(CHECKPOINT_DIR, folder / "model")
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors[NAME].view(-1)[5] = value
    save_file(tensors, file)
    return folder / "model"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scheme", ["none", "w8a16", "w8a8_dynamic"])
def test_a_weight_that_is_not_finite_is_named(value: float, scheme: str, tmp_path: Path) -> None:
    settings = [f"model.path={changed_demo(tmp_path, value)}", "backend=eager", f"quant={scheme}", "max_seq_len=64"]
    with LLM(settings) as llm, pytest.raises(UserError, match=f"{NAME} holds NaN or infinite"):
        llm.generate("One day", SamplingParams(max_new_tokens=1))


def test_a_weight_beyond_float16_is_named_with_the_way_out(tmp_path: Path) -> None:
    settings = [f"model.path={changed_demo(tmp_path, 1e5)}", "backend=eager", "max_seq_len=64"]
    with LLM([*settings, "dtype=float16"]) as llm, pytest.raises(UserError, match=r"beyond 65504.*dtype=bfloat16"):
        llm.generate("One day", SamplingParams(max_new_tokens=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype) -> None:
    x = torch.linspace(-6e4, 6e4, 3000).to(dtype).view(30, 100)
    assert is_finite(x)
    assert is_finite(x[:, 3:50])
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = x.clone()
        broken[17, 40] = value
        assert not is_finite(broken)
        assert not is_finite(broken[:, 3:50])
        assert is_finite(broken[:, 41:])
