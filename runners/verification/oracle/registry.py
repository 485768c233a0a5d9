"""The table of formulas by GE op type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Inputs = Mapping[str, Any]  # name -> tensor, or list of tensors
Attrs = Mapping[str, Any]
Formula = Callable[[Inputs, Attrs], list[Tensor]]
FORMULAS: dict[str, Formula] = {}


def formula(*types: str) -> Callable[[Formula], Formula]:
    """Register a function as the formula of these op types."""

    def register(function: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(types, function))
        return function

    return register
