"""Helpers for tests of checkpoints that other tools wrote, or that are hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from support.configs import TINY_CONFIGS

CONFIG = replace(TINY_CONFIGS["one_kv_head"], num_hidden_layers=2, dtype="bfloat16")
Weights = dict[str, Tensor]


def weights_of(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


def rewrite(directory: Path, change: Callable[[Weights], Any]) -> None:
    weights = weights_of(directory)
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "model.safetensors")


def set_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(directory, read_config(directory))
    return str(caught.value)


def assert_reads(directory: Path, expected: Weights) -> None:
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        assert set(checkpoint.names) == set(expected)
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())
