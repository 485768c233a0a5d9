"""Put quantize and dequantize nodes around the linears that are quantized."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graph_model import ops
from graph_model.graph import ModelGraph
from graph_model.quantization.linears import GROUPS, Quantization, group_of
from graph_model.weights import CheckpointTensor, Concat, Expression, Slice
from graph_model.weights.quantized import (
    ChannelScale,
    DeqScale,
    Dequantized,
    DequantizedBias,
    PartialBias,
    QuantizedExpression,
    QuantizedWeight,
)
from passes.framework.contract import NearMiss, Pass, Tier, operand, sole_user

aten = torch.ops.aten

Leaf = CheckpointTensor | Dequantized


@dataclass(frozen=True)
class InsertQuantization(Pass):
    """Weights become int8, from the checkpoint or made at load; activations as the scheme says.

    Original: y = aten.linear(x, w, bias). After::

        y = dequantize(int_linear(quantize(x, input_scale, input_offset), w8, quant_bias), deq_scale)      w8a8
        q, s = quantize_rows(x); y = dequantize(int_linear(q, w8, None), scale, s, bias)                   w8a8_dynamic
        y = aten.linear(x, dequantize_weight(w8, scale), bias)                                             w8a16

    Linears of one input share its quantize. quant_bias holds the bias and the correction for input_offset. Where ranks
    share the columns of w, w8a8 sums their integers, so that several ranks compute what one does::

        all_reduce(aten.linear(x, w))  ->  dequantize(all_reduce(int_linear(q, w8, partial_bias)), deq_scale)
    """

    name: ClassVar[str] = "insert_quantization"
    tier: ClassVar[Tier] = Tier.QUANTIZING
    # Small random models are far more sensitive than trained ones; accuracy is measured on the latter.
    budget: ClassVar[float] = 0.5
    required: ClassVar[bool] = True

    def applies(self, graph: ModelGraph) -> bool:
        return graph.scheme is not None

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        quantized = set(_quantization(graph).linears)
        return [node for node in graph.calls(aten.linear.default) if quantized.intersection(_paths(node))]

    def expected_matches(self, graph: ModelGraph) -> int:
        linears = set(_quantization(graph).linears)
        merged = [paths for node in graph.calls(aten.linear.default) if len(paths := _paths(node)) > 1]
        return len(linears) - sum(len(paths) - 1 for paths in merged if linears.issuperset(paths))

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        scheme = _quantization(graph).scheme
        x, weight = operand(candidate, 0), operand(candidate, 1)
        bias = candidate.args[2] if len(candidate.args) > 2 else None
        paths = _paths(candidate)
        leaves = _leaves(candidate, weight)
        if len(leaves) != len(paths):
            raise NearMiss(candidate, f"its weight joins {len(leaves)} tensors, expected those of {', '.join(paths)}")

        def add(suffix: str, make: Callable[[str, Leaf], Expression]) -> fx.Node:
            parts = tuple(_rank_part(make, path, leaf) for path, leaf in zip(paths, leaves, strict=True))
            name = f"{weight.name.removesuffix('_weight')}_{suffix}"
            return graph.add_weight(name, parts[0] if len(parts) == 1 else Concat(parts))

        int8 = add("int8", _int8_weight)
        if scheme == "w8a8":
            owner = group_of(paths[0])[0]
            scale, offset = (_scalar(graph, f"{owner}.{name}") for name in ("input_scale", "input_offset"))
            q = _quantized(graph, ops.quantize, x, scale, offset)
            deq_scale = add("deq_scale", lambda path, leaf: DeqScale(f"{path}.deq_scale", leaf.shape[:1]))
            if isinstance(leaves[0], Slice) and leaves[0].dim == 1:
                int_bias = add("quant_bias", lambda path, _: _partial_bias(path, leaves[0]))
                total = graph.insert(ops.int_linear, q, int8, int_bias, at=candidate)
                candidate = sole_user(candidate, ops.all_reduce)
                total = graph.insert(ops.all_reduce, total, at=candidate)
                candidate = _with_bias(candidate)
            else:
                int_bias = add(
                    "quant_bias", lambda path, w: CheckpointTensor(f"{path}.quant_bias", w.shape[:1], torch.int32)
                )
                total = graph.insert(ops.int_linear, q, int8, int_bias, at=candidate)
            result = graph.insert(ops.dequantize, total, deq_scale, None, None, graph.dtype, at=candidate)
        elif scheme == "w8a8_dynamic":
            pair = _quantized(graph, ops.quantize_rows, x)
            q, row_scale = (graph.insert(operator.getitem, pair, index, at=candidate) for index in range(2))
            total = graph.insert(ops.int_linear, q, int8, None, at=candidate)
            scale = add("scale", _weight_scale)
            result = graph.insert(ops.dequantize, total, scale, row_scale, bias, graph.dtype, at=candidate)
        else:
            scale = add("scale", _weight_scale)
            wide = graph.insert(ops.dequantize_weight, int8, scale, graph.dtype, at=candidate)
            rest = () if bias is None else (bias,)
            result = graph.insert(aten.linear.default, x, wide, *rest, at=candidate)
        candidate.replace_all_uses_with(result)


def _quantization(graph: ModelGraph) -> Quantization:
    assert graph.quantization is not None
    return graph.quantization


def _paths(linear: fx.Node) -> tuple[str, ...]:
    """The paths of the model's linears that a node computes: several where projections were merged."""
    layer = linear.meta["layer"]
    parent, _, name = layer.rpartition(".")
    for group, merged in zip(GROUPS, ("qkv_proj", "gate_up_proj"), strict=True):
        if name == merged:
            return tuple(f"{parent}.{member}" for member in group)
    return (layer,)


def _leaves(linear: fx.Node, weight: fx.Node) -> tuple[Leaf | Slice, ...]:
    """The checkpoint's matrices, or the rank's parts of them, that a linear's weight joins."""
    expression = weight.meta.get("expression")
    parts = expression.parts if isinstance(expression, Concat) else (expression,)
    if not all(isinstance(part.x if isinstance(part, Slice) else part, Leaf) for part in parts):
        raise NearMiss(linear, f"its weight is {expression}, expected weights of the checkpoint")
    return parts  # type: ignore[return-value]


def _rank_part(make: Callable[[str, Leaf], Expression], path: str, leaf: Leaf | Slice) -> Expression:
    """What `make` makes of a matrix; of a rank's part of it, that part: its rows' numbers, or all rows' columns."""
    if not isinstance(leaf, Slice):
        return make(path, leaf)
    assert isinstance(leaf.x, Leaf)
    whole = make(path, leaf.x)
    if leaf.dim >= len(whole.shape):
        return whole
    assert isinstance(whole, CheckpointTensor | QuantizedExpression)
    return Slice(whole, leaf.dim, leaf.start, leaf.stop)


def _partial_bias(path: str, leaf: Leaf | Slice) -> PartialBias:
    """The rank's share of the bias, for the columns that `leaf` has of the weight."""
    assert isinstance(leaf, Slice)
    return PartialBias(path, leaf.shape[:1], leaf.start, leaf.stop)


def _with_bias(total: fx.Node) -> fx.Node:
    """The addition of the floating-point bias behind the ranks' sum, where there is one; quant_bias holds it too."""
    users = list(total.users)
    if len(users) != 1 or users[0].target != aten.add.Tensor:
        return total
    return users[0] if isinstance(operand(users[0], 1).meta.get("expression"), DequantizedBias) else total


def _int8_weight(path: str, leaf: Leaf) -> Expression:
    if isinstance(leaf, Dequantized):
        return CheckpointTensor(f"{path}.weight", leaf.shape, torch.int8)
    return QuantizedWeight(leaf.name, leaf.shape, leaf.dtype)


def _weight_scale(path: str, leaf: Leaf) -> Expression:
    if isinstance(leaf, Dequantized):
        return CheckpointTensor(f"{path}.weight_scale", leaf.shape[:1], torch.float32)
    return ChannelScale(leaf.name, leaf.shape[:1], leaf.dtype)


def _scalar(graph: ModelGraph, name: str) -> fx.Node:
    """The weight of one float32 that the checkpoint calls `name`."""
    return graph.add_weight(f"p_{name}".replace(".", "_"), CheckpointTensor(name, (1,), torch.float32))


def _quantized(graph: ModelGraph, target: Callable[..., object], x: fx.Node, *scales: fx.Node) -> fx.Node:
    """The quantize of `x`, which all linears of `x` share."""
    for user in x.users:
        if user.target == target and user.args == (x, *scales):
            return user
    quantized = graph.insert(target, x, *scales, at=x.next)
    quantized.meta["layer"] = x.meta["layer"]
    return quantized
