"""What a pass is: a rewrite of every place that matches, with a contract that the manager enforces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.weights import Expression


class Tier(Enum):
    """How far the graph after a pass may be from the graph before it."""

    EXACT = "exact"  # equal bits
    TOLERANT = "tolerant"  # equal up to rounding in another order
    QUANTIZING = "quantizing"  # within the budget that the pass declares


class PassError(Exception):
    """A pass broke its contract; the message names the pass, the rule and the nearest misses."""


class NearMiss(Exception):
    """A candidate that does not match, with the node and the reason."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        where = f" in {node.meta['layer']}" if node.meta.get("layer") else ""
        super().__init__(f"{node.name}{where}: {reason}")


@dataclass
class Outcome:
    """What a pass did."""

    matches: int = 0
    near_misses: list[str] = field(default_factory=list)  # why candidates were left alone


@dataclass(frozen=True)
class Expected:
    """How often a pass must match in a graph."""

    count: int
    reason: str = ""  # why it is 0; a pass that finds nothing without a reason breaks its contract


class Matches(Protocol):
    """A pass's declaration of how often it must match (passes.framework.matches has those that passes share)."""

    def __call__(self, graph_pass: Pass, graph: ModelGraph, /) -> Expected: ...


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes; options of a pass are the fields of its dataclass."""

    name: ClassVar[str]
    tier: ClassVar[Tier]
    budget: ClassVar[float] = 0.0  # of the quantizing tier: largest difference of outputs, relative to the largest
    required: ClassVar[bool] = False  # without it no backend could run the graph
    matches: ClassVar[Matches]
    # Passes that make what this one matches: where one of them is off there is nothing to match, and that is said.
    needs: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()  # further passes that may not come later, where they are on
    removes: ClassVar[tuple[object, ...]] = ()  # ops that may not remain
    introduces: ClassVar[tuple[str, ...]] = ()  # names of ops that no other pass knows, as dumps write them

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        """The nodes that a match hangs on, in graph order: calls of what the pass removes, unless it says otherwise."""
        return graph.calls(*self.removes)

    @abstractmethod
    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        """Match around `candidate` and replace it, or raise NearMiss and leave the graph as it is."""

    def idle(self, graph: ModelGraph) -> str:
        """Why graphs of this model and bucket have nothing to do with the pass, which is then left out; "": they do."""
        return ""

    def prepare(self, graph: ModelGraph) -> None:  # noqa: B027 - an optional hook
        """Work on the whole graph before the first match, such as new inputs."""

    def apply(self, graph: ModelGraph) -> Outcome:
        """Rewrite every match in `graph`, in place."""
        outcome = Outcome()
        self.prepare(graph)
        for candidate in self.candidates(graph):
            try:
                self.rewrite(graph, candidate)
            except NearMiss as miss:
                outcome.near_misses.append(str(miss))
            else:
                outcome.matches += 1
        graph.clean()
        return outcome


def out_of_order(passes: Sequence[Pass]) -> tuple[Pass, Pass] | None:
    """The first pass that comes before one that it must come after, and that one; None: the order is right."""
    for index, early in enumerate(passes):
        for late in passes[index + 1 :]:
            if late.name in (*early.needs, *early.after):
                return early, late
    return None


def operand(node: fx.Node, index: int, target: object = None) -> fx.Node:
    """Argument `index` of `node`, which must be a node, and a call of `target` where one is given. Raises NearMiss."""
    value = node.args[index] if index < len(node.args) else None
    if isinstance(value, fx.Node) and target in (None, value.target):
        return value
    expected = "a tensor" if target is None else f"a call of {describe_target(target)}"
    raise NearMiss(node, f"argument {index} is {describe(value)}, expected {expected}")


def expression(node: fx.Node, index: int) -> Expression:
    """The expression of argument `index` of `node`, which must be a weight. Raises NearMiss."""
    found = operand(node, index).meta.get("expression")
    if isinstance(found, Expression):
        return found
    raise NearMiss(node, f"argument {index} is {describe(node.args[index])}, expected a weight")


def sole_user(node: fx.Node, target: object) -> fx.Node:
    """The only user of `node`, which must be a call of `target`. Raises NearMiss."""
    users = list(node.users)
    if len(users) == 1 and users[0].target == target:
        return users[0]
    found = ", ".join(describe(user) for user in users)
    raise NearMiss(node, f"is used by {found}, expected one call of {describe_target(target)}")


def require(condition: object, node: fx.Node, reason: str) -> None:
    """Raise NearMiss with `reason` unless `condition` holds."""
    if not condition:
        raise NearMiss(node, reason)


def describe(value: object) -> str:
    """A short name of a node or an argument for messages."""
    if isinstance(value, fx.Node):
        return f"{value.name} ({describe_target(value.target) if value.op == 'call_function' else value.op})"
    return repr(value)


def describe_target(target: object) -> str:
    """An op's name as the dumps write it: aten.add.Tensor, gemma.rms_norm."""
    return str(target).removesuffix(".default") if isinstance(target, torch._ops.OpOverload) else str(target)
