"""Loading and running GE graphs: order, by-reference writes, and refusing what is not known."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from support.ge_graphs import const, data, graph, node

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, TensorDesc
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS

X, Y = torch.arange(4.0), torch.full((4,), 10.0)


def test_nodes_run_in_the_order_of_their_edges() -> None:
    g = graph(
        node("Add", "sum", {"x1": "product", "x2": "y"}),
        node("Mul", "product", {"x1": "x", "x2": "x"}),
        data("y", 1),
        data("x", 0),
        output=("sum", "product"),
    )
    total, product = Program(g).run([X, Y])
    assert torch.equal(product, X * X)
    assert torch.equal(total, X * X + Y)


def test_one_program_serves_many_runs_and_frees_intermediates() -> None:
    g = graph(
        data("x", 0),
        node("Neg", "a", {"x": "x"}),
        node("Neg", "b", {"x": "a"}),
        node("Neg", "c", {"x": "b"}),
        output=("c",),
    )
    program = Program(g)
    alive: list[weakref.ref[torch.Tensor]] = []
    original = OPS["Neg"].kernel

    def watched(x: torch.Tensor) -> torch.Tensor:
        alive.append(weakref.ref(x))
        return original(x)

    program._steps = [dataclasses.replace(step, kernel=watched) for step in program._steps]
    for value in (1.0, 2.0):
        alive.clear()
        assert program.run([torch.full((4,), value)])[0].tolist() == [-value] * 4
        assert [ref() is not None for ref in alive[1:]] == [False, False]


def test_dynamic_inputs_and_outputs_keep_their_numbers() -> None:
    g = graph(
        data("x", 0),
        data("y", 1),
        const("axis", torch.tensor(0)),
        const("sizes", torch.tensor([3, -1])),
        node("ConcatV2", "cat", {"x1": "y", "concat_dim": "axis", "x0": "x"}, N=2),
        node("SplitV", "split", {"x": "cat", "size_splits": "sizes", "split_dim": "axis"}, outputs=2, num_split=2),
        output=("split:1", "split:0"),
    )
    tail, head = Program(g).run([X, Y])
    assert head.tolist() == [0, 1, 2]
    assert tail.tolist() == [3, 10, 10, 10, 10]


def test_by_reference_ops_write_the_graphs_inputs() -> None:
    g = graph(
        data("cache", 0, shape=(3, 2)),
        data("rows", 1, torch.int64, (1, 1)),
        data("new", 2, shape=(1, 2)),
        node("ScatterNdUpdate", "scatter", {"var": "cache", "indices": "rows", "updates": "new"}),
        node("Neg", "read", {"x": "scatter"}),
        output=("read",),
    )
    cache = torch.zeros(3, 2)
    (read,) = Program(g).run([cache, torch.tensor([[1]]), torch.ones(1, 2)])
    assert cache.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert torch.equal(read, -cache)


def write(var: str, **kwargs: tuple[str, ...]) -> tuple:
    return (
        data("cache", 0, shape=(3, 2)),
        data("rows", 1, torch.int64, (1, 1)),
        data("new", 2, shape=(1, 2)),
        const("shape", torch.tensor([3, 2])),
        node("Reshape", "view", {"x": "cache", "shape": "shape"}),
        node("TensorMove", "copy", {"x": "cache"}),
        node("ScatterNdUpdate", "scatter", {"var": var, "indices": "rows", "updates": "new"}, **kwargs),
    )


def test_a_write_through_a_view_of_an_input_is_refused() -> None:
    with pytest.raises(GeGraphError, match=r"through Reshape view: .* not defined"):
        Program(graph(*write("view"), output=("scatter",)))


def test_a_write_to_a_copy_leaves_the_input() -> None:
    program = Program(graph(*write("copy"), output=("scatter",)))
    cache = torch.zeros(3, 2)
    (out,) = program.run([cache, torch.tensor([[1]]), torch.ones(1, 2)])
    assert out.sum() == 2
    assert not cache.any()


def test_a_write_to_a_constant_is_refused() -> None:
    with pytest.raises(GeGraphError, match="writes the constant"):
        Program(graph(*write("shape"), output=("scatter",)))


def test_an_unordered_reader_of_written_memory_is_refused() -> None:
    reader = node("Neg", "reader", {"x": "cache"})
    parts = list(write("cache", controls=("view", "copy")))
    with pytest.raises(GeGraphError, match=r"Neg reader reads: no edge says which comes first"):
        Program(graph(*parts, reader, output=("scatter", "reader")))
    ordered = node("Neg", "reader", {"x": "cache"}, controls=("scatter",))
    Program(graph(*parts, ordered, output=("scatter", "reader")))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("Frobnicate", "n", {"x": "x"}), "no function for op type Frobnicate"),
        (node("Neg", "n", {"x": "x"}, colour=3), "attribute 'colour'"),
        (node("Neg", "n", {"z": "x"}), "required input 'x' is missing"),
        (node("Neg", "n", {"x": "x", "z": "x"}), "'z' are not known"),
        (node("Muls", "n", {"x": "x"}), "attribute.* value missing"),
        (node("Neg", "n", {"x": "nowhere"}), "nowhere, which is not in the graph"),
        (node("Neg", "n", {"x": "n"}), "cycle"),
        (node("ConcatD", "n", {"x0": "x", "x2": "x"}, concat_dim=0), "not numbered"),
    ],
)
def test_what_is_not_known_is_refused_when_the_graph_is_loaded(bad: object, message: str) -> None:
    with pytest.raises(GeGraphError, match=message):
        Program(graph(data("x", 0), bad, output=("n",)))  # type: ignore[arg-type]


def test_private_attributes_and_absent_inputs_are_ignored() -> None:
    weight = data("w", 1, shape=(4, 4))
    product = node("MatMul", "n", {"x1": "x", "x2": "w", "bias": ""}, _input_name_key=["x1"])
    product.inputs[-1] = dataclasses.replace(product.inputs[-1], index=-1)
    (out,) = Program(graph(data("x", 0, shape=(1, 4)), weight, product, output=("n",))).run([X[None], torch.eye(4)])
    assert torch.equal(out, X[None])


def test_results_that_differ_from_the_declared_ones_are_refused() -> None:
    wrong = node("Neg", "n", {"x": "x"})
    wrong.outputs = [TensorDesc("y", torch.float32, (2, 2), fx_name="neg-aten.neg.OUTPUT.0")]
    with pytest.raises(GeGraphError, match=r"shape \(4,\), declared \(2, 2\)"):
        Program(graph(data("x", 0), wrong, output=("n",))).run([X])
    wrong.outputs = [TensorDesc("y", torch.float16, (4,))]
    with pytest.raises(GeGraphError, match=r"declared torch\.float16"):
        Program(graph(data("x", 0), wrong, output=("n",))).run([X])


@pytest.mark.parametrize("layout", ["FRACTAL_NZ", "NCHW", ""])
@pytest.mark.parametrize("name", ["x", "n"])
def test_layouts_other_than_nd_are_refused_on_loading(name: str, layout: str) -> None:
    g = graph(data("x", 0), node("Neg", "n", {"x": "x"}), output=("n",))
    Program(g)
    changed = g.by_name()[name]
    changed.outputs = [dataclasses.replace(changed.outputs[0], layout=layout)]
    message = rf"^{changed.type} {name}: output y0? has the layout '{layout}'; the interpreter knows 'ND'"
    with pytest.raises(GeGraphError, match=message):
        Program(g)


@pytest.mark.parametrize("name", ["x", "n"])
def test_unknown_declared_dtypes_are_refused_on_loading(name: str) -> None:
    g = graph(data("x", 0), node("Neg", "n", {"x": "x"}), output=("n",))
    changed = g.by_name()[name]
    changed.outputs = [dataclasses.replace(changed.outputs[0], dtype=None, unknown_dtype="DT_INT4")]
    message = (
        rf"^{changed.type} {name}: output y0? is declared DT_INT4; the interpreter knows float32, float16, .*bfloat"
    )
    with pytest.raises(GeGraphError, match=message):
        Program(g)


def test_inputs_that_differ_from_the_declared_ones_are_refused() -> None:
    g = graph(data("x", 1), data("y", 0, torch.int64, (2,)), node("Neg", "n", {"x": "x"}), output=("n",))
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(GeGraphError, match=r"^Data x: input 1 is torch\.float16, declared torch\.float32$"):
        Program(g).run([y, X.half()])
    with pytest.raises(GeGraphError, match=r"^Data y: input 0 has shape \(2, 1\), declared \(2,\)$"):
        Program(g).run([y[:, None], X])
    assert torch.equal(Program(g).run([y, X])[0], -X)


@pytest.mark.parametrize("declared", [None, (-2,), (-1,), (-1, 2), (2, -1), ()])
def test_sizes_that_a_graph_leaves_open_are_any(declared: tuple[int, ...] | None) -> None:
    program = Program(graph(data("x", 0, shape=declared), node("Neg", "n", {"x": "x"}), output=("n",)))
    x = torch.ones(() if declared == () else (3,) if declared == (-1,) else (2, 2))
    assert torch.equal(program.run([x])[0], -x)
    if declared not in (None, (-2,)):
        with pytest.raises(GeGraphError, match="Data x: input 0 has shape"):
            Program(program.graph).run([x[None]])


def test_errors_name_the_node_and_its_inputs() -> None:
    y = data("y", 1, shape=(3,))
    g = graph(data("x", 0), y, node("Add", "sum", {"x1": "x", "x2": "y"}), output=("sum",))
    with pytest.raises(GeGraphError, match=r"Add sum: inputs torch.float32\[4\], torch.float32\[3\]"):
        Program(g).run([X, Y[:3]])
    with pytest.raises(GeGraphError, match="2 inputs, 1 were given"):
        Program(g).run([X])
