"""Record the GE graphs that torchair hands to the engine while a block of code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, read_graph


@dataclass(frozen=True)
class LoadedGraph:
    """A graph that the engine got."""

    graph: GeGraph
    options: dict[str, str]  # compile options
    serialized: bytes  # its ge.proto.ModelDef


@contextmanager
def recorded_graphs() -> Iterator[list[LoadedGraph]]:
    """Yields a list to which every graph is appended as it is loaded, on the stand-in or a device.

    torchair must be loaded. One graph for many steps means that nothing was recompiled.
    """
    from torchair.ge._ge_graph import GeGraph as TorchairGraph

    loaded: list[LoadedGraph] = []
    original = TorchairGraph.load

    def load(self: Any, options: dict[str, str], **kwargs: Any) -> Any:
        loaded.append(LoadedGraph(read_graph(self._proto), dict(options or {}), self.SerializeToString()))
        return original(self, options, **kwargs)

    TorchairGraph.load = load
    try:
        yield loaded
    finally:
        TorchairGraph.load = original
