"""Quantized checkpoints as ModelSlim writes them, made from the format's description with numpy, not by our writer."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

LEADERS = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
NAMES = {"w8a8": "W8A8", "w8a8_dynamic": "W8A8_DYNAMIC", "w8a16": "W8A16"}


@dataclass(frozen=True)
class QuantizedTensors:
    """The content of a quantized checkpoint."""

    tensors: dict[str, Tensor]  # by name
    description: dict[str, str]  # of each tensor: the scheme's name or FLOAT


def quantized_tensors(
    weights: Mapping[str, Tensor],
    linears: Iterable[str],
    scheme: str | None,
    dtype: torch.dtype,
    dialect: str = "atb",
) -> QuantizedTensors:
    """The tensors of a checkpoint whose `linears` are quantized; input ranges are made up, equal within a group."""
    assert scheme is not None
    tensors = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}
    description = dict.fromkeys(tensors, "FLOAT")
    for path in linears:
        weight = tensors[f"{path}.weight"].float().numpy().astype(np.float64)
        parent, _, name = path.rpartition(".")
        owner = f"{parent}.{LEADERS.get(name, name)}"
        maximum = 5.0 + zlib.crc32(owner.encode()) % 100 / 50
        made = _static(weight, -5.0, maximum, tensors.get(f"{path}.bias"), dtype) if scheme == "w8a8" else {}
        s_w = np.abs(weight).max(1) / 127
        made["weight"] = torch.from_numpy(np.rint(weight / s_w[:, None]).astype(np.int8))
        if scheme != "w8a8" or dialect == "vllm_ascend":
            made["weight_scale"] = torch.from_numpy(s_w[:, None]).to(dtype if scheme == "w8a8" else torch.float32)
            made["weight_offset"] = torch.zeros_like(made["weight_scale"])
        if scheme == "w8a8":
            tensors.pop(f"{path}.bias", None)
            description.pop(f"{path}.bias", None)
            if dialect == "vllm_ascend":
                made["input_offset"] = made["input_offset"].to(torch.int8)
        for kind, tensor in made.items():
            tensors[f"{path}.{kind}"] = tensor
            description[f"{path}.{kind}"] = NAMES[scheme]
    return QuantizedTensors(tensors, description)


def _static(
    weight: np.ndarray, minimum: float, maximum: float, bias: Tensor | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    s_x = torch.tensor([(maximum - minimum) / 255]).to(dtype)
    rounded = float(s_x.item())
    z = round(-minimum / rounded) - 128
    s_w = np.abs(weight).max(1) / 127
    deq_scale = (rounded * s_w).astype(np.float32)
    sums = np.rint(weight / s_w[:, None]).sum(1)
    wide_bias = np.zeros(len(sums)) if bias is None else bias.float().numpy().astype(np.float64)
    quant_bias = np.rint(wide_bias / deq_scale - z * sums).astype(np.int32)
    bits = deq_scale.view(np.int32).astype(np.int64)
    return {
        "input_scale": s_x,
        "input_offset": torch.tensor([float(z)]).to(dtype),
        "quant_bias": torch.from_numpy(quant_bias),
        "deq_scale": torch.from_numpy(bits if dtype == torch.float16 else deq_scale),
    }


def write_checkpoint(
    directory: Path, config_json: Mapping[str, Any], made: QuantizedTensors, scheme: str, dialect: str = "atb"
) -> None:
    """Files as either tool leaves them: atb names weights and description after the scheme."""
    directory.mkdir(parents=True)
    weights = f"quant_model_weight_{scheme}.safetensors"
    suffix = f"_{scheme}" if dialect == "atb" else ""
    save_file({name: tensor.contiguous() for name, tensor in made.tensors.items()}, str(directory / weights))
    extra = {"model_quant_type": NAMES[scheme]} if dialect == "vllm_ascend" else {}
    (directory / f"quant_model_description{suffix}.json").write_text(json.dumps({**extra, **made.description}))
    (directory / "config.json").write_text(json.dumps({**config_json, "quantize": scheme}))
