"""Register canonical ops in the namespace `gemma`: passes emit them and backends lower them.

An op is a schema plus a reference kernel. The kernel is registered as composite, so that fake tensors propagate
through it, eager execution runs it, and a backend that has nothing better traces it into aten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library

NAMESPACE = "gemma"
_library = Library(NAMESPACE, "DEF")


def canonical_op(schema: str) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Decorator: define `gemma::<schema>` with the function as its reference kernel; returns the op overload."""
    return lambda kernel: _define(schema, kernel, "CompositeImplicitAutograd")


def kernel_op(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Decorator: define `gemma::<schema>` as an op that backends call as it is; `fake` gives its result's metadata."""

    def register(kernel: Callable[..., Any]) -> torch._ops.OpOverload:
        overload = _define(schema, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(overload.name(), fake, lib=_library)
        return overload

    return register


def _define(schema: str, kernel: Callable[..., Any], dispatch_key: str) -> torch._ops.OpOverload:
    name = _library.define(schema)
    _library.impl(name, kernel, dispatch_key)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    overload.__doc__ = kernel.__doc__
    return overload


def is_canonical(target: object) -> bool:
    """Whether a node's target is one of the canonical ops."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == NAMESPACE
