"""The GE graphs that torchair hands to the engine while a block of code runs, on the stand-in and on a device alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graph_model.ascend.ge_graph import GeGraph, read_graph


@dataclass(frozen=True)
class LoadedGraph:
    """graph: what the engine got. options: with which compile options. serialized: the ge.proto.ModelDef, as bytes."""

    graph: GeGraph
    options: dict[str, str]
    serialized: bytes


@contextmanager
def recorded_graphs() -> Iterator[list[LoadedGraph]]:
    """Yields a list to which every graph is appended as it is loaded; torchair must be loaded.

    One graph for many steps means that nothing was recompiled.
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
