"""Show what is in a lowered Ascend graph: python runners/inspect_graph.py graph=FILE|DIR [SETTING=VALUE ...]."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from graph_model.errors import UserError
from runners.command_line.entry import main

if TYPE_CHECKING:
    from runners.settings.declared.inspect_graph import InspectGraphSettings


def inspect_graph(settings: InspectGraphSettings) -> None:
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

    context_length = settings.context_length
    if settings.compare is not None:
        print(_comparison(settings, context_length))
        return
    page, picture = (output_file(settings, name, replaced=True) for name in ("page", "picture"))
    if settings.graph is not None:
        dumps = read_dumps(Path(settings.graph).expanduser(), settings.soc)
    else:
        with tempfile.TemporaryDirectory() as folder:
            dumps = read_dumps(dump_step(settings, context_length, Path(folder)), settings.soc)
    found = [find(dump, context_length) for dump in dumps]
    print("\n\n".join(as_text(findings, settings.top) for findings in found))
    for path, text in ((page, lambda: as_page(found)), (picture, lambda: plots(found[0]))):
        if path is not None:
            write_file(path, text())
            print(f"\n{path} ({path.stat().st_size / 1e3:.0f} kB)")


def _comparison(settings: InspectGraphSettings, context_length: int | None) -> str:
    for name in ("graph", "page", "picture"):
        if getattr(settings, name) is not None:
            raise UserError(f"{name} has no meaning with compare=naive, which lowers a model and prints a table.")
    from runners.inspection.naive import compare_with_naive

    return compare_with_naive(settings, context_length)


if __name__ == "__main__":
    main(inspect_graph, "inspect_graph")
