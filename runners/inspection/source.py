"""Read dumped graphs, with the texts of the passes in the same folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graph_gemma.graph_model.ascend.ge_graph import GeGraph
from graph_gemma.graph_model.ascend.graph_file import read_graph_file
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.chips.registry import CHIPS, find_soc
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.provenance import target_of

_LISTING = "lowered.txt"
_GRAPH = "lowered.pbtxt"


@dataclass(frozen=True)
class Dump:
    """One lowered step."""

    name: str
    graph: GeGraph
    soc: Chip
    notes: list[str]  # the header of its listing
    passes: list[tuple[str, str]]  # name and text of the graph after each pass


def read_dumps(path: Path, soc: str | None) -> list[Dump]:
    """The graph in a file, or those in a folder and in the folders directly in it.

    soc: the chip's name; None: the one that the graph names, or else the first. Raises UserError.
    """
    if not path.exists():
        raise UserError(f"graph: {path} does not exist. Give a dumped graph, or the folder that dump_dir named.")
    if path.is_file():
        return [_read(path, soc)]
    found = sorted(path.glob("*.pbtxt")) + sorted(path.glob(f"*/{_GRAPH}"))
    if not found:
        raise UserError(
            f"graph: {path} holds no .pbtxt, neither itself nor the folders in it. Dump a graph: python "
            "graph-gemma infer backend=torchair dump_dir=DIR."
        )
    return [_read(file, soc) for file in found]


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Name the file where what it says of its nodes (attributes, shapes, inputs) makes no sense of any op."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # attributes, shapes and edges of any kind can be missing or of another type
        raise UserError(
            f"graph: {path} is damaged: a node has other attributes, shapes or inputs than its op takes "
            f"({type(error).__name__}: {error}). Dump the graph again."
        ) from error


def _read(path: Path, soc: str | None) -> Dump:
    folder = path.parent
    notes, passes = [], []
    if path.name == _GRAPH:
        if (folder / _LISTING).is_file():
            lines = _text(folder / _LISTING).splitlines()
            notes = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
        passes = [(file.stem, _text(file)) for file in sorted(folder.glob("[0-9][0-9]_*.txt"))]
    graph = read_graph_file(path)
    target = target_of(graph)
    if target.lowered and not any(target.lowered in note for note in notes):
        notes.append(target.lowered)
    chip = find_soc(soc or target.soc or next(iter(CHIPS)))
    if soc is None and not target.soc:
        notes.append(f"the dump names no chip: {chip.product} ({chip.cann_name}) is assumed; give soc=NAME for another")
    name = folder.resolve().name if path.name == _GRAPH else path.stem
    return Dump(name, graph, chip, notes, passes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"graph: {path} cannot be read as text ({error}). Dump the graph again.") from None
