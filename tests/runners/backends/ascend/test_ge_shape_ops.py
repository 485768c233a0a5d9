"""Ops that rearrange and index, against the same thing written with Python slices and loops."""

from __future__ import annotations

import pytest
import torch

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops import comparison, indexing, shape

X = torch.arange(24.0).view(2, 3, 4)


def t(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_reshapes_and_transposes() -> None:
    assert torch.equal(shape.reshape(X, t(4, -1)), X.view(4, 6))
    assert torch.equal(shape.transpose(X, t(2, 0, 1)), X.permute(2, 0, 1))
    assert shape.unsqueeze(X, axes=[0, -1]).shape == (1, 2, 3, 4, 1)
    assert shape.squeeze(X[:1], axis=[0]).shape == (3, 4)
    with pytest.raises(GeGraphError, match="Squeeze"):
        shape.squeeze(X, axis=[0])
    with pytest.raises(GeGraphError, match="perm"):
        shape.transpose(X, t(0, 0, 1))


def test_slices() -> None:
    got = shape.strided_slice_v2(X, t(1, -3), t(100, -1), t(2, 1), t(2, 1))
    assert torch.equal(got, X[:, -3:-1, 1::2])
    assert torch.equal(shape.slice_(X, t(1, 0, 2), t(-1, 2, 1)), X[1:, :2, 2:3])
    with pytest.raises(GeGraphError, match="slice"):
        shape.slice_(X, t(1, 0, 2), t(1, 2, 3))
    with pytest.raises(GeGraphError, match="mask"):
        shape.strided_slice_v2(X, t(0), t(1), begin_mask=1)


def test_joins_and_splits() -> None:
    assert torch.equal(shape.concat_v2([X, X], t(-1), N=2), torch.cat((X, X), -1))
    assert torch.equal(shape.pack([X, X], axis=1, N=2)[:, 1], X)
    first, rest = shape.split_v(X, t(1, -1), t(2), num_split=2)
    assert torch.equal(first, X[..., :1])
    assert torch.equal(rest, X[..., 1:])
    with pytest.raises(GeGraphError, match="one dtype"):
        shape.concat_v2([X, X.half()], t(0), N=2)


def test_ranges_and_fills() -> None:
    assert shape.range_(t(0).int(), t(5), t(2).int()).tolist() == [0, 2, 4]
    assert shape.range_(t(0).int(), t(5), t(2).int()).dtype is torch.int64
    assert shape.fill(t(2, 2), torch.tensor(1.5)).tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_gathers() -> None:
    index = t(2, 0, 2)
    assert torch.equal(indexing.gather_v2(X, index, t(1)), X[:, [2, 0, 2]])
    assert torch.equal(indexing.gather_v2(X, t(1, 0).view(1, 2), t(0)), X[[1, 0]][None])
    assert torch.equal(indexing.gather_v2(X, t(-1), t(1), negative_index_support=True), X[:, [2]])
    picked = indexing.gather_elements(X, torch.tensor([[[3, 0, 1]] * 3] * 2), dim=2)
    assert picked[1, 2].tolist() == [X[1, 2, 3], X[1, 2, 0], X[1, 2, 1]]
    assert torch.equal(indexing.index_by_tensor(X, [t(0, -1)], indices_mask=[0, 1]), X[:, [0, 2]])
    assert indexing.gather_nd(X, torch.tensor([[1, 2], [0, 0]])).tolist() == [X[1, 2].tolist(), X[0, 0].tolist()]


@pytest.mark.parametrize("bad", [-1, 3])
def test_indices_outside_their_dimension_are_refused(bad: int) -> None:
    with pytest.raises(GeGraphError, match="undefined on the chip"):
        indexing.gather_v2(X, t(bad), t(1))
    with pytest.raises(GeGraphError, match="undefined on the chip"):
        indexing.gather_elements(X[:, :, :3], torch.full((2, 3, 1), bad), dim=2)


def test_scatter_elements_refuses_two_updates_of_one_element() -> None:
    data, index = torch.zeros(2, 3), torch.tensor([[2, 0], [1, 2]])
    got = indexing.scatter_elements(data, index, torch.ones(2, 2), axis=1)
    assert got.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert not data.any()
    with pytest.raises(GeGraphError, match="two updates"):
        indexing.scatter_elements(data, torch.tensor([[2, 2], [1, 2]]), torch.ones(2, 2), axis=1)


def test_selection() -> None:
    condition = torch.tensor([True, False])
    assert comparison.select_v2(condition, t(1, 2), t(3, 4)).tolist() == [1, 4]
    assert comparison.masked_fill(torch.zeros(2), condition, torch.tensor(5.0)).tolist() == [5, 0]
    with pytest.raises(GeGraphError, match="bool"):
        comparison.select_v2(t(1, 0), t(1, 2), t(3, 4))
