"""WeightScaledScheme: the base of schemes that store an int8 weight and its scale for each linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from graph_gemma.graph_model.quantization.int8 import Dequantized, int8_weight, quantize_weight, weight_scale
from graph_gemma.graph_model.quantization.scheme import FLOATS, ActivationScale, Dialect, Scheme, StoredTensor
from graph_gemma.graph_model.weights import CheckpointTensor, Expression


class WeightScaledScheme(Scheme):
    """int8 weights per output channel, made of floating-point ones at load or stored, and nothing else stored."""

    tensors: ClassVar[Mapping[str, StoredTensor]] = {
        "weight": StoredTensor("n k", ("I8",)),
        "weight_scale": StoredTensor("n 1", FLOATS),
        "weight_offset": StoredTensor("n 1", FLOATS, required=False),
    }

    def plain(self, path: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Expression:
        if kind == "weight":
            return Dequantized(path, shape, dtype)
        return CheckpointTensor(f"{path}.{kind}", shape, dtype)

    def weights(self, path: str, weight: Expression) -> dict[str, Expression]:
        return {"int8": int8_weight(path, weight), "scale": weight_scale(path, weight)}

    def store(
        self, weight: Tensor, bias: Tensor | None, x: ActivationScale | None, dtype: torch.dtype, dialect: Dialect
    ) -> dict[str, Tensor]:
        q, scale = quantize_weight(weight)
        stored = {"weight": q, "weight_scale": scale[:, None], "weight_offset": torch.zeros(len(scale), 1)}
        return stored if bias is None else {**stored, "bias": bias.to(dtype)}
