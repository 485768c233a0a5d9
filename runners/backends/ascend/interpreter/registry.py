"""Registry of GE op types, and how a graph's node is bound to the function that executes it.

An op is a function registered with `ge_op`. Its positional parameters carry the names of the op's GE inputs: one
annotated ``list[Tensor]`` is a dynamic input (GE numbers its members x0, x1, ...), one that defaults to None is
optional. Its keyword-only parameters carry the names and defaults of the op's attributes. A trailing underscore in a
parameter's name is dropped (``else_``).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class OpSpec:
    """One op type."""

    type: str
    kernel: Kernel
    inputs: tuple[tuple[str, str], ...]  # (name, kind) in the function's order; required, optional or dynamic
    defaults: dict[str, Any]  # values of the attributes that have one
    required_attrs: frozenset[str]  # the other attributes
    by_reference: dict[int, str]  # output index -> name of the input that the op writes and returns there
    ignored: frozenset[str]  # attributes that do not change the result


OPS: dict[str, OpSpec] = {}

# Attributes that torchair adds to any node for its own use.
_ANNOTATIONS = frozenset({"torchair_enable_data_dump"})


def ge_op(
    *types: str, by_reference: dict[int, str] | None = None, ignored: Sequence[str] = ()
) -> Callable[[Kernel], Kernel]:
    """Register a function as the meaning of these GE op types.

    by_reference: the outputs that are inputs written in place. ignored: attributes that do not change the result.
    """

    def register(kernel: Kernel) -> Kernel:
        inputs, defaults, required = [], {}, set()
        for parameter_name, parameter in inspect.signature(kernel).parameters.items():
            name = parameter_name.removesuffix("_")
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                if parameter.default is inspect.Parameter.empty:
                    required.add(name)
                else:
                    defaults[name] = parameter.default
            elif "list[Tensor]" in str(parameter.annotation):
                inputs.append((name, "dynamic"))
            else:
                optional = parameter.default is not inspect.Parameter.empty
                inputs.append((name, "optional" if optional else "required"))
        for op_type in types:
            attrs = (defaults, frozenset(required))
            OPS[op_type] = OpSpec(op_type, kernel, tuple(inputs), *attrs, by_reference or {}, frozenset(ignored))
        return kernel

    return register


@dataclass(frozen=True)
class BoundNode:
    """A node ready to run: kernel(*arguments), where an argument is a slot, a list of slots or None."""

    kernel: Kernel
    arguments: tuple[tuple[str, int] | list[tuple[str, int]] | None, ...]
    spec: OpSpec


def bind(node: Node) -> BoundNode:
    """Resolve a node's inputs and attributes. Raises GeGraphError on anything that the op's function does not know."""
    spec = OPS.get(node.type)
    if spec is None:
        raise GeGraphError(
            f"{where(node)}: the interpreter has no function for op type {node.type}; it does not guess. "
            f"It knows: {', '.join(sorted(OPS))}"
        )
    return BoundNode(_bind_attrs(node, spec), _bind_inputs(node, spec), spec)


def where(node: Node) -> str:
    return f"{node.type} {node.name}"


def _bind_inputs(node: Node, spec: OpSpec) -> tuple[tuple[str, int] | list[tuple[str, int]] | None, ...]:
    given: dict[str, tuple[str, int]] = {}
    for edge in node.inputs:
        if edge.producer:
            if edge.name in given:
                raise GeGraphError(f"{where(node)}: two inputs are named {edge.name!r}")
            given[edge.name] = (edge.producer, edge.index)
    arguments: list[tuple[str, int] | list[tuple[str, int]] | None] = []
    for name, kind in spec.inputs:
        if kind == "dynamic":
            members = {int(m[1]): key for key in given if (m := re.fullmatch(rf"{name}(\d+)", key))}
            if sorted(members) != list(range(len(members))):
                raise GeGraphError(f"{where(node)}: the members of input {name!r} are not numbered 0, 1, ...")
            arguments.append([given.pop(members[i]) for i in range(len(members))])
        elif name in given:
            arguments.append(given.pop(name))
        elif kind == "optional":
            arguments.append(None)
        else:
            raise GeGraphError(f"{where(node)}: required input {name!r} is missing")
    if given:
        raise GeGraphError(f"{where(node)}: input(s) {', '.join(map(repr, given))} are not known to the interpreter")
    while arguments and arguments[-1] is None:
        arguments.pop()
    return tuple(arguments)


def _bind_attrs(node: Node, spec: OpSpec) -> Kernel:
    attrs = {}
    for name, value in node.attrs.items():
        if name.startswith("_") or name in _ANNOTATIONS or name in spec.ignored:
            continue
        if name not in spec.defaults and name not in spec.required_attrs:
            raise GeGraphError(f"{where(node)}: attribute {name!r} ({value!r}) is not known to the interpreter")
        attrs[name] = value
    missing = spec.required_attrs - attrs.keys()
    if missing:
        raise GeGraphError(f"{where(node)}: attribute(s) {', '.join(sorted(missing))} missing")
    return functools.partial(spec.kernel, **attrs) if attrs else spec.kernel
