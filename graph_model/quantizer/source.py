"""Read the floating-point checkpoint that calibration starts from: its config, and tensors that are finite."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from graph_gemma.graph_model.checkpoint.reader import Checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.numerics import is_finite


def read_float_config(source: Path) -> GemmaConfig:
    """The config of a checkpoint directory. Raises UserError if the checkpoint is quantized."""
    config = read_config(source)
    if config.quantize is not None:
        raise UserError(
            f"{source}/config.json: quantize is {config.quantize!r}; it is quantized already. Give the floating-point "
            "original."
        )
    return config


def read_finite(checkpoint: Checkpoint, name: str, config: GemmaConfig) -> Tensor:
    """The tensor in the model's dtype. Raises UserError if a value is not finite, or becomes so."""
    tensor = checkpoint.read(name).to(getattr(torch, config.dtype))
    if not is_finite(tensor):
        raise UserError(
            f"{name} holds NaN or infinite values in {config.dtype}. Such a checkpoint is damaged and cannot be "
            "calibrated; copy it again from the original."
        )
    return tensor
