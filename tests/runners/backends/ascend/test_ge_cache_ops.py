"""Ops that write by reference: they write the very tensor that they are given, once per slot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.cache import (
    assign,
    dynamic_quant_update_scatter,
    scatter_nd_update,
    scatter_pa_kv_cache,
)


def test_scatter_pa_writes_each_token_to_its_slot_only() -> None:
    key_cache, value_cache = torch.zeros(3, 4, 2, 5), torch.zeros(3, 4, 2, 6)
    key, value = torch.randn(3, 2, 5), torch.randn(3, 2, 6)
    slots = torch.tensor([11, 0, 5], dtype=torch.int32)
    out = scatter_pa_kv_cache(key, key_cache, slots, value, value_cache)
    assert out[0] is key_cache
    assert out[1] is value_cache
    for token, (block, offset) in enumerate([(2, 3), (0, 0), (1, 1)]):
        assert torch.equal(key_cache[block, offset], key[token])
        assert torch.equal(value_cache[block, offset], value[token])
    assert key_cache.flatten(0, 1).any(-1).any(-1).sum() == 3


@pytest.mark.parametrize(
    ("slots", "message"), [([1, 1], "two tokens have one slot"), ([0, 8], "legal are 0 to 7"), ([-1, 0], "legal are")]
)
def test_scatter_pa_refuses_undefined_slots(slots: list[int], message: str) -> None:
    cache = torch.zeros(2, 4, 1, 4)
    new = torch.ones(2, 1, 4)
    with pytest.raises(GeGraphError, match=message):
        scatter_pa_kv_cache(new, cache, torch.tensor(slots), new, cache.clone())


def test_scatter_pa_refuses_other_layouts_and_dtypes() -> None:
    cache, new, slots = torch.zeros(2, 4, 1, 4), torch.ones(2, 1, 4), torch.tensor([0, 1])
    with pytest.raises(GeGraphError, match="cache_mode"):
        scatter_pa_kv_cache(new, cache, slots, new, cache, cache_mode="PA_NZ")
    with pytest.raises(GeGraphError, match="one dtype"):
        scatter_pa_kv_cache(new.half(), cache, slots, new, cache)


@pytest.mark.parametrize("depth", [1, 2])
def test_scatter_nd_update_addresses_leading_dimensions(depth: int) -> None:
    var = torch.zeros(3, 4, 2)
    indices = torch.tensor([[2, 1], [0, 3]])[:, :depth]
    updates = torch.randn((2, *var.shape[depth:]))
    expected = var.clone()
    for row, update in zip(indices.tolist(), updates, strict=True):
        expected[tuple(row)] = update
    assert scatter_nd_update(var, indices, updates) is var
    assert torch.equal(var, expected)


def test_dynamic_quant_update_scatter_writes_rows_and_scales() -> None:
    var, scales = torch.full((6, 1, 64), 9, dtype=torch.int8), torch.full((6, 1, 1), 9.0)
    rows = (torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0)) * 3).half()
    rows[2] = 0
    indices = torch.tensor([[4, 0], [0, 0], [5, 0]])
    out = dynamic_quant_update_scatter(var, scales, indices, rows, reduce="update", axis=-2)
    assert out[0] is var
    assert out[1] is scales
    for row, (place, _) in zip(rows[:2, 0].double().numpy(), indices.tolist(), strict=False):
        step = np.abs(row).max() / 127
        assert scales[place].item() == pytest.approx(step, rel=1e-6)
        assert np.abs(var[place, 0].numpy() - row / step).max() <= 0.5001
        assert np.abs(var[place, 0].numpy().astype(int)).max() == 127
    assert not var[5].any()
    assert not scales[5].any()
    assert bool((var[1:4] == 9).all() and (scales[1:4] == 9).all())


def test_dynamic_quant_update_scatter_addresses_two_axes() -> None:
    var, scales = torch.zeros(2, 3, 5, 32, dtype=torch.int8), torch.zeros(2, 3, 5, 1)
    updates = torch.ones(1, 3, 2, 32).bfloat16()
    dynamic_quant_update_scatter(var, scales, torch.tensor([[1, 3]]), updates, reduce="update", axis=-2)
    assert bool((var[1, :, 3:] == 127).all())
    assert int(var.bool().sum()) == 3 * 2 * 32
    assert int(scales.bool().sum()) == 3 * 2


@pytest.mark.parametrize(
    ("indices", "options", "message"),
    [
        ([[1, 0], [1, 0]], {}, "one slot"),
        ([[1, 0], [4, 0]], {}, "legal are 0 to 3"),
        ([[1, 0], [2, 1]], {}, "legal are 0 to 0"),
        ([[1, 0], [2, 0]], {"axis": 0}, "axis 0"),
        ([[1, 0], [2, 0]], {"reduce": "add"}, "'add'"),
    ],
)
def test_dynamic_quant_update_scatter_refuses_what_is_undefined(
    indices: list[list[int]], options: dict[str, Any], message: str
) -> None:
    var, scales = torch.zeros(4, 1, 32, dtype=torch.int8), torch.zeros(4, 1, 1)
    with pytest.raises(GeGraphError, match=message):
        dynamic_quant_update_scatter(
            var,
            scales,
            torch.tensor(indices),
            torch.ones(2, 1, 32).half(),
            **{"reduce": "update", "axis": -2, **options},
        )


def test_scatter_nd_update_refuses_equal_and_foreign_addresses() -> None:
    with pytest.raises(GeGraphError, match="one slot"):
        scatter_nd_update(torch.zeros(3, 4), torch.tensor([[1], [1]]), torch.ones(2, 4))
    with pytest.raises(GeGraphError, match="legal are 0 to 3"):
        scatter_nd_update(torch.zeros(3, 4), torch.tensor([[1, 4]]), torch.ones(1))


def test_assign_copies_into_the_reference() -> None:
    ref, value = torch.zeros(3), torch.arange(3.0)
    assert assign(ref, value) is ref
    assert torch.equal(ref, value)
    with pytest.raises(GeGraphError, match="Assign of"):
        assign(ref, torch.zeros(4))
