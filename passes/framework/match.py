"""Match a pattern, a small graph, against a part of a model's graph; what differs first is the near miss."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Any

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import NearMiss, describe, describe_target, require, sole_user

aten = torch.ops.aten

_COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)


class Match:
    """What the pattern's nodes and open numbers are in the model's graph."""

    def __init__(self, open_numbers: Collection[object] | None, swapped: Collection[fx.Node]) -> None:
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.numbers: dict[object, Any] = {}
        self._open_numbers, self._swapped = open_numbers, swapped

    def bind(self, wanted: fx.Node, found: fx.Node) -> None:
        """Take `found` for the pattern's `wanted`, both calls of one op. Raises NearMiss if their arguments differ."""
        self.nodes[wanted] = found
        ours, theirs = _arguments(wanted), _arguments(found)
        if wanted in self._swapped:
            ours["self"], ours["other"] = ours["other"], ours["self"]
        for index, (name, value) in enumerate(ours.items()):
            self._compare(value, theirs[name], found, f"argument {index} ({name})")

    def _compare(self, wanted: Any, found: Any, node: fx.Node, place: str) -> None:
        def expect(condition: object, what: str) -> None:
            require(condition, node, f"{place} is {describe(found)}, expected {what}")

        if isinstance(wanted, (list, tuple)):
            expect(isinstance(found, (list, tuple)) and len(found) == len(wanted), f"{len(wanted)} values")
            for one, another in zip(wanted, found, strict=True):
                self._compare(one, another, node, place)
        elif wanted in self.nodes:
            expect(found is self.nodes[wanted], describe(self.nodes[wanted]))
        elif isinstance(wanted, fx.Node) and wanted.op == "placeholder":
            expect(isinstance(found, fx.Node), "a tensor")
            self.nodes[wanted] = found
        elif isinstance(wanted, fx.Node):
            same = isinstance(found, fx.Node) and found.target == wanted.target
            expect(same, f"a call of {describe_target(wanted.target)}")
            self.bind(wanted, found)
        elif self._open_numbers is None:
            expect(found == wanted, repr(wanted))
        elif wanted in self._open_numbers:
            expect(type(found) is type(wanted), f"a number of type {type(wanted).__name__}")
            self.numbers.setdefault(wanted, found)


def match(pattern: ModelGraph, candidate: fx.Node, open_numbers: Collection[object] | None = None) -> Match:
    """Match `pattern` around `candidate`, a call of an op that the pattern calls once. Raises NearMiss.

    The pattern's inputs match any tensors, its sums and products take their operands in either order. What the pattern
    computes from the candidate's op to its result nothing else may read.
    open_numbers: these match any numbers of their type, and all others any value; None: numbers are as in the pattern.
    """
    (wanted,), (result,) = pattern.calls(candidate.target), pattern.outputs
    while wanted is not result:
        (wanted,) = wanted.users
        candidate = sole_user(candidate, wanted.target)
    commutative = [n for n in pattern.calls(*_COMMUTATIVE) if len(n.all_input_nodes) == 2]
    misses = []
    for choice in product((False, True), repeat=len(commutative)):
        found = Match(open_numbers, [node for node, swapped in zip(commutative, choice, strict=True) if swapped])
        try:
            found.bind(result, candidate)
        except NearMiss as miss:
            misses.append((len(found.nodes), miss))
        else:
            return found
    raise max(misses, key=lambda each: each[0])[1]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, with the schema's defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema}
    names = (argument.name for argument in schema)
    return {**bound, **dict(zip(names, node.args, strict=False)), **node.kwargs}
