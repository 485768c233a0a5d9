"""The quantization schemes by name; each is a file of this package."""

from __future__ import annotations

from importlib import import_module

from graph_gemma.graph_model.quantization.linears import SCHEMES, Quantization
from graph_gemma.graph_model.quantization.scheme import Scheme

# By name, as settings must know the names without what the files import: torch, which takes seconds.
_SCHEMES: dict[str, Scheme] = {
    name: import_module(f"graph_gemma.graph_model.quantization.{name}").SCHEME for name in SCHEMES
}


def find_scheme(name: str) -> Scheme:
    """The scheme of a name in SCHEMES."""
    return _SCHEMES[name]


def scheme_of(quantization: Quantization | None) -> Scheme | None:
    """How linears are quantized; None: none is."""
    return None if quantization is None or quantization.scheme is None else find_scheme(quantization.scheme)
