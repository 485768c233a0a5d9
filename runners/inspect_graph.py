"""Show what is in a lowered Ascend graph: python runners/inspect_graph.py graph=FILE|DIR [SETTING=VALUE ...]."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.inspect_graph import InspectGraphSettings


def inspect_graph(settings: InspectGraphSettings) -> None:
    """Print the figures of dumped graphs, or of one that is lowered now, and write the page; or the comparison."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_gemma.graph_model.whole_files import write_file
    from graph_gemma.runners.inspection.findings import find
    from graph_gemma.runners.inspection.live import dump_step
    from graph_gemma.runners.inspection.page import as_page
    from graph_gemma.runners.inspection.plots import plots
    from graph_gemma.runners.inspection.source import damage_named, read_dumps
    from graph_gemma.runners.inspection.text import as_text
    from graph_gemma.runners.io.files import output_file

    context_length = settings.context_length
    if settings.compare is not None:
        print(_comparison(settings, context_length))
        return
    page, picture = (output_file(settings, name, replaced=True) for name in ("page", "picture"))
    with tempfile.TemporaryDirectory() as folder:
        given = settings.graph
        source = dump_step(settings, context_length, Path(folder)) if given is None else Path(given).expanduser()
        with nullcontext() if given is None else damage_named(source):
            found = [find(dump, context_length) for dump in read_dumps(source, settings.soc)]
            text = "\n\n".join(as_text(findings, settings.top) for findings in found)
            files = {page: as_page(found) if page else "", picture: plots(found[0]) if picture else ""}
    print(text)
    for path, content in files.items():
        if path is not None:
            write_file(path, content)
            print(f"\n{path} ({path.stat().st_size / 1e3:.0f} kB)")


def _comparison(settings: InspectGraphSettings, context_length: int | None) -> str:
    for name in ("graph", "page", "picture"):
        if getattr(settings, name) is not None:
            raise UserError(f"{name} has no meaning with compare=naive, which lowers a model and prints a table.")
    from graph_gemma.runners.inspection.naive import compare_with_naive

    return compare_with_naive(settings, context_length)


if __name__ == "__main__":
    main(inspect_graph, "inspect_graph")
