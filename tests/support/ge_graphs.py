"""GE graphs written by hand, as torchair would name their parts, and single ops run from such graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import Edge, GeGraph, Node, TensorDesc
from graph_gemma.runners.backends.ascend.interpreter import Program

Test = TypeVar("Test", bound=Callable[..., None])


def data(name: str, index: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] | None = (4,)) -> Node:
    return Node(name, "Data", outputs=[TensorDesc("y", dtype, shape)], attrs={"index": index})


def const(name: str, value: Tensor) -> Node:
    return Node(name, "Const", outputs=[TensorDesc("", value.dtype, tuple(value.shape))], attrs={"value": value})


def node(op_type: str, name: str, inputs: dict[str, str], *, outputs: int = 1, controls: tuple[str, ...] = (),
         **attrs: Any) -> Node:  # fmt: skip
    """inputs: input name -> "producer" or "producer:index"."""
    edges = []
    for key, source in inputs.items():
        producer, _, index = source.partition(":")
        edges.append(Edge(key, producer, int(index or 0)))
    descs = [TensorDesc(f"y{i}") for i in range(outputs)]
    return Node(name, op_type, edges, list(controls), descs, attrs)


def graph(*nodes: Node, output: tuple[str, ...], controls: tuple[str, ...] = ()) -> GeGraph:
    net_output = node("NetOutput", "NetOutput", {f"input{i}": name for i, name in enumerate(output)}, outputs=0)
    net_output.controls = list(controls)
    return GeGraph("graph", [*nodes, net_output])


def run_op(op_type: str, inputs: dict[str, Tensor | list[Tensor]], outputs: int = 1, **attrs: Any) -> list[Tensor]:
    """What a graph of one node gives. inputs: by GE's names; the members of a list are the dynamic input's."""
    tensors: dict[str, Tensor] = {}
    for name, value in inputs.items():
        members = {f"{name}{i}": member for i, member in enumerate(value)} if isinstance(value, list) else {name: value}
        tensors |= members
    nodes = [data(f"in_{name}", i, x.dtype, tuple(x.shape)) for i, (name, x) in enumerate(tensors.items())]
    op = node(op_type, "op", {name: f"in_{name}" for name in tensors}, outputs=outputs, **attrs)
    program = Program(graph(*nodes, op, output=tuple(f"op:{i}" for i in range(outputs))))
    return program.run(list(tensors.values()))


def covers(*op_types: str) -> Callable[[Test], Test]:
    """Declares that a test checks these op types, each alone, by an independent formula. See test_ge_every_op.py."""

    def declare(test: Test) -> Test:
        test.covered_ge_ops = op_types  # type: ignore[attr-defined]
        return test

    return declare


def assert_rounded(found: Tensor, expected: np.ndarray, ulps: float = 0.51) -> None:
    """Within `ulps` units in the last place of found's dtype from a float64 result; infinite where that overflows."""
    exact = torch.from_numpy(np.asarray(expected, dtype=np.float64))
    assert found.shape == exact.shape, (found.shape, exact.shape)
    rounded = exact.to(found.dtype)
    special = ~rounded.isfinite() | ~found.isfinite()
    torch.testing.assert_close(found[special], rounded[special], rtol=0, atol=0, equal_nan=True)
    info = torch.finfo(found.dtype)
    magnitude = exact.abs().clamp(min=info.tiny)
    unit = info.eps * 2.0 ** torch.floor(torch.log2(magnitude))
    error = torch.where(special, 0.0, (found.double() - exact).abs() / unit)
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= ulps, f"{worst} units in the last place"


def edge_values(dtype: torch.dtype) -> Tensor:
    """Zeros of both signs, ties, the smallest and largest numbers, infinities and NaN."""
    info = torch.finfo(dtype)
    finite = [0.0, -0.0, 0.5, 1.0, 1.5, 2.5, -0.5, -1.0, -2.5, 3.0, 100.25, -100.25, info.smallest_normal]
    finite += [info.smallest_normal * info.eps, info.max, info.min]
    return torch.tensor([*finite, math.inf, -math.inf, math.nan], dtype=torch.float64).to(dtype)
