"""Put quantize and dequantize nodes around the linears that are quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.capture import plain_weight
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.graph_model.weights import Concat, Expression, Slice
from graph_gemma.passes.framework.contract import Matches, NearMiss, Pass, Tier, operand, sole_user
from graph_gemma.passes.framework.matches import Counted, linear_calls, not_quantized

aten = torch.ops.aten


@dataclass(frozen=True)
class InsertQuantization(Pass):
    """Quantize and dequantize around the linears that `quant` or the checkpoint names.

    Weights become int8, from the checkpoint or made at load; activations as the scheme says.

    Original: y = aten.linear(x, w, bias). After: what the scheme's `compute` inserts, see `graph_model.quantization`.

    Linears of one input share its quantize.
    """

    name: ClassVar[str] = "insert_quantization"
    tier: ClassVar[Tier] = Tier.QUANTIZING
    matches: ClassVar[Matches] = Counted(lambda graph: linear_calls(graph, quantized=True))
    after: ClassVar[tuple[str, ...]] = ("merge_qkv", "merge_gate_up", "last_token")
    # Small random models are far more sensitive than trained ones; accuracy is measured on the latter.
    budget: ClassVar[float] = 0.5
    required: ClassVar[bool] = True

    def idle(self, graph: ModelGraph) -> str:
        return not_quantized(graph)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        assert graph.quantization is not None
        quantized = set(graph.quantization.linears)
        return [node for node in graph.calls(aten.linear.default) if quantized.intersection(_paths(graph, node))]

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        assert graph.scheme is not None
        linear = _Linear(graph, graph.scheme, candidate)
        result = graph.scheme.compute(linear)
        linear.node.replace_all_uses_with(result)


class _Linear:
    """A call of aten.linear that the scheme replaces: a `LinearSite`. Raises NearMiss if its weight is no such one."""

    def __init__(self, graph: ModelGraph, scheme: Scheme, node: fx.Node) -> None:
        self.node = node  # what is replaced, and what new nodes come before
        self.x, self._weight = operand(node, 0), operand(node, 1)
        self.bias: Any = node.args[2] if len(node.args) > 2 else None
        self.dtype = graph.dtype
        self._graph, self._scheme = graph, scheme
        self._paths = _paths(graph, node)
        expression = self._weight.meta.get("expression")
        self._leaves: tuple[Any, ...] = expression.parts if isinstance(expression, Concat) else (expression,)
        if len(self._leaves) != len(self._paths) or not all(map(self._is_plain, self._paths, self._leaves)):
            wanted = ", ".join(self._paths)
            raise NearMiss(node, f"its weight is {expression}, expected weights of the checkpoint, those of {wanted}")

    def _is_plain(self, path: str, leaf: object) -> bool:
        """Whether `leaf` is the plain model's weight at `path`, or a part of it."""
        whole = leaf.x if isinstance(leaf, Slice) else leaf
        if not isinstance(whole, Expression):
            return False
        graph = self._graph
        return whole == plain_weight(f"{path}.weight", whole.shape, graph.dtype, graph.config, graph.quantization)

    def weight(self, name: str) -> fx.Node:
        leaves = zip(self._paths, self._leaves, strict=True)
        parts = tuple(_quantized_weight(self._scheme, path, leaf, name) for path, leaf in leaves)
        full_name = f"{self._weight.name.removesuffix('_weight')}_{name}"
        return self._graph.add_weight(full_name, parts[0] if len(parts) == 1 else Concat(parts))

    def input_weight(self, name: str) -> fx.Node:
        owner = self._graph.family.group_of(self._paths[0]).paths[0]
        return self._graph.add_weight(f"p_{owner}.{name}".replace(".", "_"), self._scheme.input_weights(owner)[name])

    def insert(self, target: Callable[..., object], *args: object) -> fx.Node:
        return self._graph.insert(target, *args, at=self.node)

    def quantize_input(self, target: Callable[..., object], *scales: fx.Node) -> fx.Node:
        for user in self.x.users:
            if user.target == target and user.args == (self.x, *scales):
                return user
        quantized = self._graph.insert(target, self.x, *scales, at=self.x.next)
        quantized.meta["layer"] = self.x.meta["layer"]
        return quantized

    def all_reduce(self, total: fx.Node) -> fx.Node:
        leaf = self._leaves[0]
        if not isinstance(leaf, Slice) or leaf.dim != 1:
            return total
        self.node = sole_user(self.node, ops.all_reduce)
        total = self.insert(ops.all_reduce, total)
        users = list(self.node.users)
        if len(users) == 1 and users[0].target == aten.add.Tensor and "expression" in operand(users[0], 1).meta:
            self.node = users[0]  # the bias in floating point, which total has
        return total


def _quantized_weight(scheme: Scheme, path: str, leaf: Expression, name: str) -> Expression:
    """The weight that the scheme calls `name`; of a rank's part of a linear, the rank's share of it."""
    if not isinstance(leaf, Slice):
        return scheme.weights(path, leaf)[name]
    return scheme.weights(path, leaf.x)[name].share(leaf.dim, leaf.start, leaf.stop, leaf.x.shape[leaf.dim])


def _paths(graph: ModelGraph, linear: fx.Node) -> tuple[str, ...]:
    """The paths of the model's linears that a node computes: several where projections were merged."""
    return graph.family.linears_at(linear.meta["layer"])
