"""Muon's updates are orthogonal, as large as its learning rate says, and those of torch's own Muon."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graph_gemma.runners.demo.training.muon import Muon, orthogonalise

SHAPES = [(16, 48), (48, 16), (32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_to_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch_within_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    gradients = [torch.randn(shape) for _ in range(3)]

    def trained(make: type[Muon] | type[torch.optim.Muon]) -> Tensor:
        matrix = torch.nn.Parameter(start.clone())
        optimizer = make([matrix], lr=0.02, momentum=0.95, weight_decay=0.01)
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        return matrix.detach() - start

    expected = trained(torch.optim.Muon)
    assert (trained(Muon) - expected).norm() < 0.03 * expected.norm()
