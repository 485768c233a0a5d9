"""Bytes moved and operations of a GE node: the counts, and the rules that many ops share.

Every input is read once and every output written once, unless an op's rule says otherwise. Operations are those of the
definition: a multiply-add of a matrix product is two; functions such as exp count as ten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from graph_gemma.graph_model.ascend.ge_graph import Node, TensorDesc, TensorKey, byte_count, element_count

FUNCTION = 10  # operations of exp, cos, ...: a polynomial
SOFTMAX = FUNCTION + 4  # operations per score: scale, maximum, subtract, exp, sum


class Uncountable(Exception):
    """A node whose bytes or operations are not known; the message says why."""


@dataclass(frozen=True)
class Work:
    """What one node takes of a chip."""

    read: int = 0  # bytes of device memory
    written: int = 0  # bytes of device memory
    matrix: int = 0  # operations of the matrix units
    vector: int = 0  # operations of the vector units
    matrix_dtype: torch.dtype | None = None  # of the matrix product's inputs
    link: float = 0.0  # bytes sent to each other chip of the group, one way


@dataclass(frozen=True)
class Operands:
    """The tensors of a node."""

    inputs: dict[str, TensorDesc]  # by name, the members of a dynamic input as key0, key1, ...
    outputs: list[TensorDesc]  # those that something could read
    open: list[str] = field(default_factory=list)  # inputs whose dtype or shape is not known

    @classmethod
    def of(cls, node: Node, descs: dict[TensorKey, TensorDesc]) -> Operands:
        present = {edge.name: (edge.producer, edge.index) for edge in node.inputs if edge.producer}
        return cls(
            {name: descs[key] for name, key in present.items() if key in descs},
            [descs[node.name, i] for i in range(len(node.outputs)) if (node.name, i) in descs],
            [name for name, key in present.items() if key not in descs],
        )

    def __getitem__(self, name: str) -> TensorDesc:
        """The input of that name, or the first member of a dynamic input."""
        found = self.inputs.get(name) or self.inputs.get(f"{name}0")
        if found is None:
            raise Uncountable(f"it has no input {name}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def bytes_read(self, *but: str) -> int:
        return sum(byte_count(desc) for name, desc in self.inputs.items() if name not in but)

    def bytes_written(self) -> int:
        return sum(map(byte_count, self.outputs))

    def most_elements(self) -> int:
        """The size of the largest operand."""
        return max(map(element_count, (*self.inputs.values(), *self.outputs)))


# The last argument: how many tokens a row of attention sees; None: as many as its block table or its keys have.
WorkRule = Callable[[Node, Operands, int | None], Work]


def per_element(operations: int) -> WorkRule:
    """The rule of `operations` vector operations per element of the largest operand."""

    def work(node: Node, operands: Operands, context_length: int | None = None) -> Work:
        vector = operations * operands.most_elements()
        return Work(operands.bytes_read(), operands.bytes_written(), vector=vector)

    return work


def product(x: str, weight: str) -> WorkRule:
    """The rule of a matrix product of inputs `x` and `weight`."""

    def work(node: Node, operands: Operands, context_length: int | None = None) -> Work:
        left, right, out = operands[x], operands[weight], operands.outputs[0]
        transposed = node.attrs.get(f"transpose_{x}") or node.attrs.get(f"adj_{x}")
        assert left.shape is not None
        inner = left.shape[-2 if transposed else -1]
        # A weight of another dtype is expanded on the vector unit first: subtract, multiply.
        vector = 2 * element_count(right) if right.dtype != left.dtype else 0
        if left.dtype is torch.int8:
            vector = 2 * element_count(out)  # the scales
        matrix = 2 * element_count(out) * inner
        return Work(operands.bytes_read(), operands.bytes_written(), matrix, vector, left.dtype)

    return work


def update(written: tuple[str, ...], updates: tuple[str, ...]) -> WorkRule:
    """The rule of inputs `written` by reference, only where the inputs `updates` go."""

    def work(node: Node, operands: Operands, context_length: int | None = None) -> Work:
        return Work(operands.bytes_read(*written), sum(byte_count(operands[name]) for name in updates))

    return work
