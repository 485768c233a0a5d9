"""Random Gemma checkpoints, made and saved by transformers, whose output depends on the whole context."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from graph_gemma.graph_model.checkpoint import expected_tensors
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.runners.backends.transformers_import import import_transformers


@dataclass(frozen=True)
class Gains:
    """Factors on fan_in ** -0.5, the standard deviation of a projection's weights; `embedding` is after its scaling."""

    query_key: float
    value: float
    output: float
    down: float
    embedding: float


# Attention on few tokens, strongly mixed: small mistakes change tokens soon. Rounding to 16 bit does so too.
SENSITIVE = Gains(query_key=2.5, value=1.5, output=4.0, down=1.0, embedding=0.6)
# Rounding to bfloat16 changes about 1 % of the tokens (0.2 % in float16), but generated text varies less.
CALM = Gains(query_key=1.0, value=1.0, output=3.0, down=0.4, embedding=0.15)


def make_checkpoint(
    directory: Path,
    config: GemmaConfig,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    sharded: bool = False,
) -> Any:
    """Save a random GemmaForCausalLM of `config` in `dtype` through save_pretrained; returns the model.

    The files are transformers' own: config.json names `dtype`, whatever `config` says of it.
    """
    model = make_model(config, seed, dtype)
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(directory, safe_serialization=True, max_shard_size=total // 3 if sharded else "5GB")
    return model


def write_random_checkpoint(directory: Path, config: GemmaConfig) -> int:
    """Write small random numbers of a config's shapes, in its dtype, as one file; returns their bytes."""
    dtype = getattr(torch, config.dtype)
    tensors = {name: (torch.randn(shape) / 50).to(dtype) for name, shape in expected_tensors(config).items()}
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config.to_json()))
    return sum(tensor.nbytes for tensor in tensors.values())


def is_known(config: GemmaConfig) -> bool:
    """Whether the transformers that is installed has models of `config`'s family."""
    return config.model_type in import_transformers().CONFIG_MAPPING


def make_model(
    config: GemmaConfig, seed: int = 0, dtype: torch.dtype = torch.float32, gains: Gains | None = None
) -> Any:
    """A transformers model of `config`'s family with random weights, in eval mode; SENSITIVE in float32, else CALM."""
    transformers = import_transformers()
    settings = transformers.CONFIG_MAPPING[config.model_type](**config.to_json())
    model = getattr(transformers, config.architecture)(settings).eval()
    randomize(model, seed, gains or (SENSITIVE if dtype == torch.float32 else CALM))
    # Parameters only: from_pretrained leaves the rotary frequencies, a buffer, in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int, gains: Gains) -> None:
    """Random weights under which the next token depends on the whole context.

    With usual random weights and a tied head the embedding of the last token dominates the residual stream, and every
    model echoes its last token. So the embedding is small against what the layers add, and what attention reads
    outweighs the MLP, which sees the last token only.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = {"q_proj": gains.query_key, "k_proj": gains.query_key, "v_proj": gains.value, "o_proj": gains.output}
    factors["down_proj"] = gains.down
    for name, weight in model.named_parameters():
        kind = name.split(".")[-2]
        if name.endswith("bias"):
            std = 0.1
        elif "norm" in kind:
            std = 0.3
        elif kind == "embed_tokens":
            std = gains.embedding * weight.shape[1] ** -0.5
        else:
            std = factors.get(kind, 1.0) * weight.shape[1] ** -0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)
