"""The weights that kernels of Ascend chips ask for: rounded norm factors and the causal mask."""

from __future__ import annotations

import json

import pytest
import torch

from graph_gemma.graph_model.weights import (
    CausalMask,
    CheckpointTensor,
    Expression,
    OnePlus,
    Rounded,
    evaluate,
    from_json,
    to_json,
)

FACTOR = OnePlus(CheckpointTensor("norm.weight", (3,), torch.bfloat16))


def read(name: str) -> torch.Tensor:
    assert name == "norm.weight"
    return torch.tensor([0.001, -0.5, 1 / 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_factor_is_added_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    expression = Rounded(FACTOR, dtype)
    (value,) = evaluate([expression], read, torch.device("cpu")).values()
    assert torch.equal(value, (1 + read("norm.weight").bfloat16().double()).to(dtype))
    assert value.dtype == dtype


def test_the_mask_hides_later_keys() -> None:
    (mask,) = evaluate([CausalMask(5)], read, torch.device("cpu")).values()
    assert mask.tolist() == [[key > query for key in range(5)] for query in range(5)]


@pytest.mark.parametrize("expression", [Rounded(FACTOR, torch.float16), CausalMask(2048)])
def test_descriptions_are_read_back(expression: Expression) -> None:
    assert from_json(json.loads(json.dumps(to_json(expression)))) == expression
