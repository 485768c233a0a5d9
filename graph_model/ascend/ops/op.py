"""AscendOp: schema, fake, converter, CPU kernel, limits and work of one op, and how torch and torchair learn of it.

Importing graph_model.ascend.ops defines the ops of namespace `ascend`, without torch_npu, so that passes can write them
into a graph anywhere. On the device they run inside a lowered graph only; `cpu` gives them a meaning elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.work import WorkRule
from graph_gemma.graph_model.chips.chip import Chip

# Raises GeGraphError or UserError unless the chip takes the node; inputs: the tensors by the names of GE's inputs.
Rule = Callable[[Node, dict[str, TensorDesc], Chip], None]
_LIBRARY = torch.library.Library("ascend", "FRAGMENT")


@dataclass(frozen=True)
class AscendOp:
    """An op that passes select and torchair lowers to one GE op."""

    torch_name: str  # namespace::name of the op in a graph of torch; torch_npu defines npu::, torchair air::
    ge_type: str  # of the GE op that it is lowered to
    work: WorkRule  # bytes moved and operations
    cpu: Callable[..., Any] | None = None  # what it computes, on CPU tensors; written from the op's document
    check: Rule | None = None  # what the op takes, on every chip and on this one
    schema: str = ""  # arguments and results of an op of namespace ascend
    fake: Callable[..., Any] | None = None  # metadata of its results, after checks of its arguments
    convert: Callable[..., Any] | None = None  # to GE, with torchair loaded; None: torchair has a converter
    functionalize: Callable[..., Any] | None = None  # of an op that writes in place: as one that does not
    # GE output -> the GE input that it is, of an op that writes by reference and that torchair does not know.
    in_place: Mapping[int, int] = field(default_factory=dict)
    # Attribute of the model that the op carries -> its argument, and the attribute of the GE op, that have the value.
    carries: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # Attribute of the model that the kernel puts in by itself -> in words.
    computes: Mapping[str, str] = field(default_factory=dict)

    def define(self) -> None:
        """Define the op in torch, where that is ours to do."""
        if not self.schema:
            return
        _LIBRARY.define(self.torch_name.removeprefix("ascend::") + self.schema)
        assert self.fake is not None
        torch.library.register_fake(self.torch_name, self.fake, lib=_LIBRARY)
        if self.functionalize is not None:
            _LIBRARY.impl(self.torch_name.removeprefix("ascend::"), self.functionalize, "Functionalize")


def ge() -> Any:
    """torchair's functions that add a node, one for each GE op; torchair must be loaded."""
    from torchair._ge_concrete_graph import ge_apis

    return ge_apis


def ge_dtype(dtype: torch.dtype) -> int:
    """GE's number of a dtype; torchair must be loaded."""
    from torchair.ge._ge_graph import torch_type_to_ge_type

    number: int = torch_type_to_ge_type(dtype)
    return number


def insert_node(
    ge_type: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    attrs: Mapping[str, float | int | bool | str],
    optional: Sequence[str] = (),
    defaults: Mapping[str, float | int | bool | str] | None = None,
) -> Any:
    """Add a node of a GE op for which torchair has no function; returns its outputs.

    optional, defaults: the optional inputs of the op's prototype, and its attributes that have a default. Inputs that
    are None are left out.
    """
    from torchair._ge_concrete_graph.compat_ir import IrDef, ge_op
    from torchair.ge import attr

    kinds = {float: attr.Float, int: attr.Int, bool: attr.Bool, str: attr.Str}
    ir = IrDef(ge_type)
    for name in optional:
        ir.optional_input(name, "")
    for name, value in (defaults or {}).items():
        ir.attr(name, kinds[type(value)](value))
    given = {name: kinds[type(value)](value) for name, value in attrs.items()}
    return ge_op(ge_type, inputs=dict(inputs), attrs=given, outputs=list(outputs), ir=ir)


def shape_of(inputs: Mapping[str, TensorDesc], name: str) -> tuple[int, ...]:
    """An input's shape. Raises GeGraphError if the graph does not declare it."""
    shape = inputs[name].shape
    if shape is None:
        raise GeGraphError(f"the shape of {name} is not declared")
    return shape
