"""What a ModelSlim checkpoint means: transformers' Gemma in float32, its linears by the format's formulas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from graph_gemma.runners.backends.transformers_import import import_transformers


def _linear(tensors: Mapping[str, Tensor], path: str, kind: str) -> Callable[[Tensor], Tensor]:
    weight = tensors[f"{path}.weight"].float()
    if kind == "W8A8":
        scale, offset = (tensors[f"{path}.{name}"].float() for name in ("input_scale", "input_offset"))
        bias, deq_scale = tensors[f"{path}.quant_bias"].float(), tensors[f"{path}.deq_scale"]
        if deq_scale.dtype == torch.int64:  # the bits of float32
            deq_scale = deq_scale.to(torch.int32).view(torch.float32)
        return lambda x: ((x / scale + offset).round().clamp(-128, 127) @ weight.T + bias) * deq_scale
    channels = tensors[f"{path}.weight_scale"].float()
    if kind == "W8A16":
        return lambda x: x @ (weight * channels).T
    assert kind == "W8A8_DYNAMIC", kind

    def dynamic(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() @ weight.T * scale * channels[:, 0]

    return dynamic


@torch.no_grad()
def formula_logprobs(directory: Path, ids: list[list[int]]) -> list[np.ndarray]:
    """Of every token after every position of each text."""
    transformers: Any = import_transformers()
    [description] = (json.loads(path.read_text()) for path in directory.glob("quant_model_description*.json"))
    tensors = {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}
    raw = json.loads((directory / "config.json").read_text())
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**raw)).float().eval()
    linears = {name.removesuffix(".weight"): kind for name, kind in description.items() if name.endswith(".weight")}
    quantized = {path: kind for path, kind in linears.items() if kind != "FLOAT"}
    model.load_state_dict(
        {f"{p}.weight": tensors[f"{p}.weight"] for p in linears.keys() - quantized.keys()}, strict=False
    )
    for path, kind in quantized.items():
        model.get_submodule(path).forward = _linear(tensors, path, kind)
    return [torch.log_softmax(model(torch.tensor([row])).logits[0], -1).numpy() for row in ids]
