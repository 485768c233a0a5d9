"""Ops that rearrange, select, reduce and search, each alone, against loops over coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from support.ge_graphs import assert_rounded, covers, run_op
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError

GE_INT32, GE_INT64, GE_INT16, GE_BF16, GE_FLOAT16, GE_FLOAT = 3, 9, 6, 27, 1, 0
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.int8, torch.bool)
SHAPES = ((2, 3, 4), (1, 1, 1), (5, 1, 3), (2, 0, 4), (7, 2, 1))


def t(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def numbered(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Every element another number, as far as the dtype goes."""
    return torch.arange(1, math.prod(shape) + 1).remainder(2 if dtype is torch.bool else 120).view(shape).to(dtype)


def made(shape: tuple[int, ...], dtype: torch.dtype, element: Callable[..., object]) -> Tensor:
    """The tensor whose element at each coordinate is element(*coordinates)."""
    out = torch.zeros(shape, dtype=dtype)
    for at in product(*map(range, shape)):
        out[at] = element(*at)
    return out


def equal(found: Tensor, expected: Tensor) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found, expected)


@covers("Transpose", "ExpandDims", "Tile", "Tril", "Triu", "Split", "Unpack", "Pack", "ConcatD", "Expand", "Shape",
        "OnesLike", "ZerosLike", "TensorMove")  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rearrangements(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = numbered(shape, dtype)
    a, b, c = shape
    equal(run_op("Transpose", {"x": x, "perm": t(2, 0, 1)})[0], made((c, a, b), dtype, lambda i, j, k: x[j, k, i]))
    equal(run_op("ExpandDims", {"x": x, "axis": t(1)})[0], made((a, 1, b, c), dtype, lambda i, _, j, k: x[i, j, k]))
    equal(run_op("ExpandDims", {"x": x, "axis": t(-1)})[0], made((*shape, 1), dtype, lambda i, j, k, _: x[i, j, k]))
    tiled = made((a, 2 * b, 3 * c), dtype, lambda i, j, k: x[i, j % b, k % c])
    equal(run_op("Tile", {"x": x, "multiples": t(1, 2, 3)})[0], tiled)
    if b:
        (expanded,) = run_op("Expand", {"x": x[:, :1], "shape": t(1, 4, 1)})
        equal(expanded, made((a, 4, c), dtype, lambda i, j, k: x[i, 0, k]))
    for diagonal in (-5, -1, 0, 2):
        for op, keeps in (("Tril", lambda j, k: k - j <= diagonal), ("Triu", lambda j, k: k - j >= diagonal)):  # noqa: B023
            expected = made(shape, dtype, lambda i, j, k: x[i, j, k] if keeps(j, k) else 0)  # noqa: B023
            equal(run_op(op, {"x": x}, diagonal=diagonal)[0], expected)
    for axis, size in ((0, a), (-1, c)):
        pieces = run_op("Split", {"split_dim": t(axis), "x": x}, outputs=size, num_split=size)
        unpacked = run_op("Unpack", {"x": x}, outputs=size, num=size, axis=axis)
        for index in range(size):
            slice_ = made((b, c) if axis == 0 else (a, b), dtype,
                          lambda i, j: x[index, i, j] if axis == 0 else x[i, j, index])  # noqa: B023  # fmt: skip
            equal(unpacked[index], slice_)
            equal(pieces[index], slice_.unsqueeze(axis))
        equal(run_op("Pack", {"x": unpacked}, N=size, axis=axis)[0], x)
        equal(run_op("ConcatD", {"x": pieces}, N=size, concat_dim=axis)[0], x)
    equal(run_op("Shape", {"x": x})[0], t(*shape, dtype=torch.int32))
    equal(run_op("Shape", {"x": x}, dtype=GE_INT64)[0], t(*shape))
    equal(run_op("OnesLike", {"x": x})[0], made(shape, dtype, lambda *at: 1))
    equal(run_op("ZerosLike", {"x": x})[0], made(shape, dtype, lambda *at: 0))
    (moved,) = run_op("TensorMove", {"x": x.transpose(0, 2)})
    equal(moved, x.transpose(0, 2))
    assert moved.is_contiguous()
    assert not x.numel() or moved.data_ptr() != x.data_ptr()


def test_scalars_are_rearranged_too() -> None:
    x = torch.tensor(3.5)
    assert run_op("Shape", {"x": x})[0].shape == (0,)
    assert run_op("ExpandDims", {"x": x, "axis": t(0)})[0].tolist() == [3.5]
    assert run_op("Expand", {"x": x, "shape": t(2, 1)})[0].tolist() == [[3.5], [3.5]]
    assert run_op("Pack", {"x": [x, x + 1]}, N=2, axis=0)[0].tolist() == [3.5, 4.5]


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "message"),
    [
        ("Split", {"split_dim": t(0), "x": numbered((3, 2))}, {"num_split": 2}, "equal pieces"),
        ("Unpack", {"x": numbered((3, 2))}, {"num": 2}, "num 2"),
        ("Pack", {"x": [numbered((2,)), numbered((2,), torch.int32)]}, {"N": 2}, "one dtype"),
        ("ConcatD", {"x": [numbered((2,))]}, {"N": 2, "concat_dim": 0}, "N is 2"),
        ("Bitcast", {"x": numbered((2,))}, {"type": GE_FLOAT16}, "Bitcast"),
        ("Bitcast", {"x": numbered((2,))}, {"type": GE_INT32, "keep_dim": True}, "Bitcast"),
        ("Gather", {"x": numbered((3, 2)), "indices": t(3)}, {}, "undefined on the chip"),
        ("Gather", {"x": numbered((3, 2)), "indices": t(-1)}, {}, "undefined on the chip"),
        ("Gather", {"x": numbered((3, 2)), "indices": t(0).float()}, {}, "the op takes"),
        ("GatherNd", {"x": numbered((3, 2)), "indices": t(0, 2)}, {}, "undefined on the chip"),
        ("IndexByTensor", {"x": numbered((3, 2)), "indices": [t(3)]}, {"indices_mask": [1]}, "undefined on the chip"),
        ("IndexByTensor", {"x": numbered((3, 2)), "indices": [t(1)]}, {"indices_mask": [1, 1]}, "1 indices"),
        ("ReduceAny", {"x": numbered((3, 2)), "axes": t(0)}, {}, "the op takes"),
        ("ReduceMin", {"x": numbered((3, 2)), "axes": t(2)}, {}, "dimension 2"),
        ("ArgMaxWithValue", {"x": torch.tensor([[1.0, math.nan]])}, {"dimension": 1}, "NaN"),
        ("Assign", {"ref": numbered((3,)), "value": numbered((2,))}, {}, "Assign of"),
        ("SearchSorted", {"sorted_sequence": numbered((3,)), "values": t(1)}, {}, "one dtype"),
    ],
)  # fmt: skip
def test_what_is_undefined_or_not_modelled_is_refused(
    op: str, inputs: dict[str, Tensor | list[Tensor]], attrs: dict[str, object], message: str
) -> None:
    outputs = {"Split": 2, "Unpack": 2, "ArgMaxWithValue": 2}.get(op, 1)
    with pytest.raises(GeGraphError, match=message):
        run_op(op, inputs, outputs, **attrs)


@covers("Bitcast")
def test_bitcast_keeps_the_bytes() -> None:
    x = torch.tensor([1.0, -0.0, math.inf, 2.0**-24])
    (bits,) = run_op("Bitcast", {"x": x}, type=GE_INT32)
    assert bits.tolist() == [0x3F800000, -(2**31), 0x7F800000, 0x33800000]
    equal(run_op("Bitcast", {"x": bits}, type=GE_FLOAT)[0], x)
    (halves,) = run_op("Bitcast", {"x": torch.tensor([[0x3C00, 0x7BFF]], dtype=torch.int16)}, type=GE_FLOAT16)
    assert halves.tolist() == [[1.0, 65504.0]]
    (brain,) = run_op("Bitcast", {"x": halves}, type=GE_BF16)
    assert brain.dtype is torch.bfloat16
    assert brain[0, 0].item() == 2.0**-7
    equal(run_op("Bitcast", {"x": brain}, type=GE_INT16)[0], torch.tensor([[0x3C00, 0x7BFF]], dtype=torch.int16))


@covers("Gather", "GatherNd", "IndexByTensor")
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_gathers_at_ends_of_dimensions_and_by_no_index(index_dtype: torch.dtype) -> None:
    x = numbered((5, 3, 2), torch.float16)
    index = t(4, 0, 4, 2, dtype=index_dtype)
    equal(run_op("Gather", {"x": x, "indices": index.view(2, 2)})[0],
          made((2, 2, 3, 2), x.dtype, lambda i, j, k, m: x[int(index.view(2, 2)[i, j]), k, m]))  # fmt: skip
    last = t(-1, dtype=index_dtype)
    equal(run_op("Gather", {"x": x, "indices": last}, negative_index_support=True)[0], x[4:])
    assert run_op("Gather", {"x": x, "indices": index[:0]})[0].shape == (0, 3, 2)
    assert run_op("GatherNd", {"x": x, "indices": torch.zeros(0, 2, dtype=index_dtype)})[0].shape == (0, 2)
    places = torch.tensor([[[4, 2], [0, 0]], [[3, 1], [4, 0]]], dtype=index_dtype)
    equal(run_op("GatherNd", {"x": x, "indices": places})[0],
          made((2, 2, 2), x.dtype, lambda i, j, k: x[int(places[i, j, 0]), int(places[i, j, 1]), k]))  # fmt: skip
    whole = torch.tensor([[4, 2, 1]], dtype=index_dtype)
    assert run_op("GatherNd", {"x": x, "indices": whole})[0].tolist() == [x[4, 2, 1].item()]
    rows, columns = t(0, -1, 4, dtype=index_dtype), t(1, 0, -2, dtype=index_dtype)
    equal(run_op("IndexByTensor", {"x": x, "indices": [rows, columns]}, indices_mask=[1, 0, 1])[0],
          made((3, 3), x.dtype, lambda i, j: x[int(rows[i]) % 5, j, int(columns[i]) % 2]))  # fmt: skip
    # An index beyond 2^31 elements' worth of offset does not wrap around.
    far = torch.zeros(1, dtype=torch.int8).expand(2**31 + 8)
    assert run_op("Gather", {"x": far, "indices": t(2**31 + 7)})[0].tolist() == [0]


@covers("ScatterElements", "Assign")
def test_scatters_over_each_axis() -> None:
    data = numbered((3, 4))
    for axis in (0, 1, -1):
        indices = torch.tensor([[2, 0, 1, 2], [0, 1, 2, 0]]) if axis == 0 else torch.tensor([[3, 0], [1, 2], [0, 3]])
        updates = -numbered(tuple(indices.shape))
        expected = data.clone()
        for i, j in product(*map(range, indices.shape)):
            expected[(int(indices[i, j]), j) if axis == 0 else (i, int(indices[i, j]))] = updates[i, j]
        before = data.clone()
        equal(run_op("ScatterElements", {"data": data, "indices": indices, "updates": updates}, axis=axis)[0], expected)
        equal(data, before)
    empty = {"data": data, "indices": torch.zeros(0, 4, dtype=torch.int64), "updates": torch.zeros(0, 4)}
    equal(run_op("ScatterElements", empty)[0], data)  # type: ignore[arg-type]
    for shape in ((), (1,), (0, 2), (3, 4)):
        ref, value = torch.zeros(shape), numbered(shape)
        run_op("Assign", {"ref": ref, "value": value})
        equal(ref, value)


@covers("OneHot")
def test_one_hot_on_every_axis_and_beyond_the_depth() -> None:
    x = torch.tensor([[0, 2], [3, -1]])
    on, off = torch.tensor([2.5]), torch.tensor([-1.0])

    def hot(depth: int, axis: int) -> Tensor:
        inputs = {"x": x, "depth": t(depth), "on_value": on, "off_value": off}
        return run_op("OneHot", inputs, axis=axis)[0]  # type: ignore[arg-type]

    def value(i: int, j: int, k: int) -> float:
        return 2.5 if int(x[i, j]) == k else -1.0

    equal(hot(3, -1), made((2, 2, 3), on.dtype, value))
    equal(hot(3, 0), made((3, 2, 2), on.dtype, lambda k, i, j: value(i, j, k)))
    equal(hot(1, 1), made((2, 1, 2), on.dtype, lambda i, k, j: value(i, j, k)))
    equal(hot(0, -1), torch.zeros(2, 2, 0))


AXES = ((0,), (1,), (-1,), (0, 2), (2, 0, 1), (-3, -1))


def reduced(x: np.ndarray, axes: tuple[int, ...], keep: bool, fold: Callable[[list[float]], float]) -> np.ndarray:
    """fold over the elements that differ only in `axes`."""
    dims = {axis % x.ndim for axis in axes}
    groups: dict[tuple[int, ...], list[float]] = {}
    shape = tuple(1 if dim in dims else size for dim, size in enumerate(x.shape))
    for at in product(*map(range, x.shape)):
        groups.setdefault(tuple(0 if dim in dims else i for dim, i in enumerate(at)), []).append(x[at])
    out = np.array([fold(groups[at]) for at in product(*map(range, shape))]).reshape(shape)
    return out if keep else out.reshape([size for dim, size in enumerate(x.shape) if dim not in dims])


@covers("ReduceMin", "ReduceMean")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keep", [False, True])
def test_means_and_minima_over_several_axes(dtype: torch.dtype, keep: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    for shape, axes in product(((3, 1, 5), (2, 7, 3)), AXES):
        x = (torch.randn(shape, generator=generator) + 1).to(dtype)
        values = x.double().numpy()
        (least,) = run_op("ReduceMin", {"x": x, "axes": t(*axes)}, keep_dims=keep)
        assert_rounded(least, reduced(values, axes, keep, min), 0.0)
        (mean,) = run_op("ReduceMean", {"x": x, "axes": t(*axes, dtype=torch.int32)}, keep_dims=keep)
        exact = reduced(values, axes, keep, lambda v: math.fsum(v) / len(v))
        if dtype is torch.float32:
            np.testing.assert_allclose(mean.numpy(), exact, rtol=1e-5, atol=1e-6)
        else:
            assert_rounded(mean, exact, 0.52)
    wide = torch.tensor([[65504.0, 65504.0, -65504.0]]).half()  # the sum is beyond fp16, the mean is not
    assert run_op("ReduceMean", {"x": wide, "axes": t(1)})[0].item() == torch.tensor(65504.0 / 3).half().item()
    ends = torch.tensor([[math.inf, 1.0, -math.inf]]).to(dtype)
    assert run_op("ReduceMin", {"x": ends, "axes": t(-1)})[0].item() == -math.inf
    whole = torch.tensor([[3, -(2**40)], [7, 2]])
    assert run_op("ReduceMin", {"x": whole, "axes": t(0)})[0].tolist() == [3, -(2**40)]


@covers("ReduceAll", "ReduceAny")
@pytest.mark.parametrize("keep", [False, True])
def test_any_and_all(keep: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    for shape, axes in product(((3, 1, 5), (2, 4, 3)), AXES):
        x = torch.rand(shape, generator=generator) > 0.5
        for op, fold in (("ReduceAny", lambda v: float(sum(v) > 0)), ("ReduceAll", lambda v: float(sum(v) == len(v)))):
            (found,) = run_op(op, {"x": x, "axes": t(*axes)}, keep_dims=keep)
            assert found.dtype is torch.bool
            assert found.tolist() == reduced(x.double().numpy(), axes, keep, fold).astype(bool).tolist()
    nothing = torch.zeros(2, 0, dtype=torch.bool)
    assert run_op("ReduceAny", {"x": nothing, "axes": t(1)})[0].tolist() == [False, False]
    assert run_op("ReduceAll", {"x": nothing, "axes": t(1)})[0].tolist() == [True, True]


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceAny", "ReduceAll"])
def test_a_reduction_over_no_axes_is_refused(op: str) -> None:
    """Versions of the prototype differ in what it means: all axes, or none."""
    x = torch.ones(2, 3, dtype=torch.bool if op in ("ReduceAny", "ReduceAll") else torch.float32)
    with pytest.raises(GeGraphError, match="no axes"):
        run_op(op, {"x": x, "axes": t()})
    with pytest.raises(GeGraphError, match="no axes"):
        run_op("ReduceMean", {"x": torch.ones(2), "axes": t()}, noop_with_empty_axes=False)
    equal(run_op("ReduceMean", {"x": torch.ones(2), "axes": t()})[0], torch.ones(2))


@covers("SoftmaxV2", "LogSoftmaxV2")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_softmax_of_hidden_equal_and_far_apart_scores(dtype: torch.dtype) -> None:
    rows = [[0.0, 0.0, 0.0], [-math.inf, 3.0, -math.inf], [60000.0, -60000.0, 59968.0], [-1e4, -1e4, -1e4 - 8]]
    for x in (torch.tensor(rows).to(dtype), torch.tensor([[7.0]]).to(dtype), torch.zeros(0, 4, dtype=dtype)):
        exact = []
        for row in x.double().tolist():
            weights = [math.exp(score - max(row)) for score in row]
            exact.append([weight / math.fsum(weights) for weight in weights])
        expected = np.array(exact).reshape(x.shape)
        ulps = 4.0 if dtype is torch.float32 else 0.51
        assert_rounded(run_op("SoftmaxV2", {"x": x}, axes=[-1])[0], expected, ulps)
        (wider,) = run_op("SoftmaxV2", {"x": x}, axes=[1], half_to_float=True)
        assert wider.dtype is torch.float32
        assert_rounded(wider, expected, 4.0)
        (logs,) = run_op("LogSoftmaxV2", {"logits": x}, axes=[-1])
        lines = [[score - max(row) - math.log(math.fsum(math.exp(s - max(row)) for s in row)) for score in row]
                 for row in x.double().tolist()]  # fmt: skip
        torch.testing.assert_close(logs, torch.tensor(lines, dtype=torch.float64).view(x.shape).to(dtype), rtol=1e-5,
                                   atol=2e-6)  # fmt: skip


@covers("ReduceSum", "ReduceMax", "Cumsum", "TopKV2", "Sort", "ArgMaxV2")
def test_sums_and_orders_of_one_none_and_many() -> None:
    half = torch.tensor([[60000.0, 60000.0, -60000.0, 1.0]]).half()
    assert run_op("ReduceSum", {"x": half, "axes": t(1)})[0].item() == 60000.0  # accumulated beyond fp16's range
    assert run_op("ReduceSum", {"x": half.abs(), "axes": t(0, 1)})[0].item() == math.inf
    assert run_op("Cumsum", {"x": half, "axis": t(1)})[0].tolist() == [[60000.0, math.inf, 60000.0, 60000.0]]
    assert run_op("ReduceSum", {"x": half[:0], "axes": t(0)})[0].tolist() == [0.0] * 4
    assert run_op("ReduceSum", {"x": t(2**62, 2**61), "axes": t(0)})[0].item() == 2**62 + 2**61
    assert run_op("ReduceMax", {"x": torch.tensor([[-math.inf, -5.0]]), "axes": t(1)}, keep_dims=True)[0].item() == -5.0
    x = torch.tensor([[3.0, math.inf, 3.0, -math.inf, -0.0, 0.0]])
    values, places = run_op("Sort", {"x": x}, 2, descending=True)
    assert (values.tolist(), places.tolist()) == ([[math.inf, 3, 3, 0, 0, -math.inf]], [[1, 0, 2, 4, 5, 3]])
    for k in (0, 1, 6):
        top, where = run_op("TopKV2", {"x": x, "k": t(k)}, 2)
        assert (top.tolist(), where.tolist()) == ([values[0, :k].tolist()], [places[0, :k].tolist()])
    assert run_op("ArgMaxV2", {"x": torch.full((2, 1), -math.inf), "dimension": t(-1)})[0].tolist() == [0, 0]
    assert run_op("Sort", {"x": x[:, :0]}, 2)[1].shape == (1, 0)


@covers("ArgMaxWithValue")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keep", [False, True])
def test_the_first_of_the_largest_and_its_place(dtype: torch.dtype, keep: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    for shape, dim in product(((4, 9), (1, 1), (3, 4001)), (0, 1, -1)):
        x = torch.randint(-3, 4, shape, generator=generator).to(dtype)  # many are equal
        places, values = run_op("ArgMaxWithValue", {"x": x}, 2, dimension=dim, keep_dims=keep)
        lines = x.unbind(1) if dim == 0 else x.unbind(0)
        expected = [max(range(len(line)), key=lambda i: (line[i], -i)) for line in (v.tolist() for v in lines)]
        assert (places.dtype, values.dtype) == (torch.int32, dtype)
        assert places.flatten().tolist() == expected
        assert values.flatten().tolist() == [line[i].item() for line, i in zip(lines, expected, strict=True)]
        kept = tuple(1 if axis == dim % 2 else size for axis, size in enumerate(shape))
        assert places.shape == values.shape == (kept if keep else (len(lines),))


@covers("SearchSorted")
@pytest.mark.parametrize("dtype", [GE_INT32, GE_INT64])
def test_search_counts_what_lies_below(dtype: int) -> None:
    rows = torch.tensor([[0.1, 0.1, 0.5, 1.0], [0.0, 0.0, 0.0, math.inf]])
    values = torch.tensor([[0.1, 2.0, -1.0], [0.0, 1e30, math.inf]])
    for right, below in ((False, lambda a, b: a < b), (True, lambda a, b: a <= b)):
        found = run_op("SearchSorted", {"sorted_sequence": rows, "values": values}, dtype=dtype, right=right)[0]
        assert found.tolist() == [
            [sum(below(entry, value) for entry in row) for value in wanted]
            for row, wanted in zip(rows.tolist(), values.tolist(), strict=True)
        ]
        assert found.dtype is (torch.int32 if dtype == GE_INT32 else torch.int64)
    assert run_op("SearchSorted", {"sorted_sequence": rows[:, :0], "values": values})[0].tolist() == [[0] * 3] * 2
