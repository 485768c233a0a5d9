"""Break a Gemma as ModelSlim's iter_smooth does: scales for a norm of w * n, where Gemma's is (1 + w) * n."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from graph_gemma.runners.backends.transformers_import import import_transformers

_ALPHA = 0.9  # the step's default
# The linears after each norm of a decoder layer.
_AFTER = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def write_smoothed(source: Path, target: Path, ids: list[list[int]]) -> None:
    """Copy a floating-point checkpoint with every norm smoothed on these texts, and the weights after it."""
    shutil.copytree(source, target)
    largest = _largest_inputs(source, ids)
    tensors = load_file(target / "model.safetensors")
    for layer in range(json.loads((target / "config.json").read_text())["num_hidden_layers"]):
        for norm, linears in _AFTER.items():
            prefix = f"model.layers.{layer}."
            weights = [f"{prefix}{linear}.weight" for linear in linears]
            columns = torch.stack([tensors[name].float().abs().amax(0) for name in weights]).amax(0)
            inputs = largest[f"{prefix}{linears[0]}"]
            scale = (inputs**_ALPHA / columns.clamp(min=1e-5) ** (1 - _ALPHA)).clamp(min=1e-5)
            tensors[f"{prefix}{norm}.weight"] = tensors[f"{prefix}{norm}.weight"].float() / scale  # should be 1 + w
            tensors.update({name: tensors[name].float() * scale for name in weights})
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(stored, target / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def _largest_inputs(source: Path, ids: list[list[int]]) -> dict[str, Tensor]:
    """Of each linear: the largest magnitude of each channel of its input, where norms of layers are w * n."""
    transformers: Any = import_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    found: dict[str, Tensor] = {}

    def keep(path: str, x: Tensor) -> None:
        channels = x.abs().flatten(0, -2).amax(0)
        found[path] = torch.maximum(found[path], channels) if path in found else channels

    for path, module in model.named_modules():
        if path.endswith(tuple(_AFTER)):
            module.weight -= 1  # GemmaRMSNorm adds it
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, path=path: keep(path, inputs[0]))
    for row in ids:
        model(torch.tensor([row]))
    return found
