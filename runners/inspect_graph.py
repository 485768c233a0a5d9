"""Show what is in a lowered Ascend graph: python runners/inspect_graph.py graph=FILE|DIR [SETTING=VALUE ...]."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.command_line.entry import main, require


def inspect_graph(settings: Any) -> None:
    """Print the figures of dumped graphs, or of one that is lowered now, and write the page; or the comparison."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_model.whole_files import write_file
    from runners.inspection.findings import find
    from runners.inspection.live import dump_step
    from runners.inspection.page import as_page
    from runners.inspection.plots import plots
    from runners.inspection.source import read_dumps
    from runners.inspection.text import as_text
    from runners.io.files import output_file
    from runners.settings.values import text_or_none

    top = _positive(settings, "top", "a number of nodes")
    context_length = None
    if settings.context_length is not None:
        context_length = _positive(settings, "context_length", "a number of tokens")
    if settings.compare is not None:
        print(_comparison(settings, context_length))
        return
    page, picture = (output_file(settings, name, replaced=True) for name in ("page", "picture"))
    graph = text_or_none("graph", settings.graph)
    if graph is not None:
        dumps = read_dumps(Path(graph).expanduser(), settings.soc)
    else:
        with tempfile.TemporaryDirectory() as folder:
            dumps = read_dumps(dump_step(settings, context_length, Path(folder)), settings.soc)
    found = [find(dump, context_length) for dump in dumps]
    print("\n\n".join(as_text(findings, top) for findings in found))
    for path, text in ((page, lambda: as_page(found)), (picture, lambda: plots(found[0]))):
        if path is not None:
            write_file(path, text())
            print(f"\n{path} ({path.stat().st_size / 1e3:.0f} kB)")


def _comparison(settings: Any, context_length: int | None) -> str:
    if settings.compare != "naive":
        raise UserError(f"compare is {settings.compare!r}; it must be naive, or null.")
    for name in ("graph", "page", "picture"):
        if settings[name] is not None:
            raise UserError(f"{name} has no meaning with compare=naive, which lowers a model and prints a table.")
    from runners.inspection.naive import compare_with_naive

    return compare_with_naive(settings, context_length)


def _positive(settings: Any, name: str, meaning: str) -> int:
    value: int = require(settings, name, int, meaning)
    if value < 1:
        raise UserError(f"{name} is {value}; it must be {meaning}, at least 1.")
    return value


if __name__ == "__main__":
    main(inspect_graph, "inspect_graph")
