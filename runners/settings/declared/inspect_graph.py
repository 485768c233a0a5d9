"""The settings of runners/inspect_graph.py."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.schema import inherited, setting


class InspectGraphSettings(InferSettings):
    """Show what is in a lowered Ascend graph: nodes, inputs, memory, estimated time. Reads dumps, made here or
    elsewhere (needs protobuf only), or lowers a step of the configured model now; then all settings of graph-gemma
    infer apply."""

    graph: str | None = setting(
        None,
        "A lowered graph (lowered.pbtxt, or any graph that torchair dumped as pbtxt), the folder of one, or a dump_dir;"
        " null: lower a step of the configured model.",
        reads=True,
    )
    phase: str = setting(
        "decode",
        "Without graph: which step, the largest of its kind: prefill, extend (a chunk after earlier ones) or decode.",
        choices=("prefill", "extend", "decode"),
    )
    context_length: int | None = setting(
        None,
        "Tokens that a row's attention sees, for the estimate, and how wide a block table is lowered; null: as many as "
        "fit.",
        least=1,
    )
    compare: str | None = setting(
        None,
        "naive: instead of the figures of one graph, print kernels and bytes of a decoder layer of the configured "
        "model's steps next to those of transformers' model as torchair lowers it, with nothing done to it.",
        choices=("naive",),
    )
    top: int = setting(10, "How many of the slowest nodes are printed.", least=1)
    page: str | None = setting(None, "Write everything to this HTML file, which needs no network.")
    picture: str | None = setting(None, "Write the plots of the first graph to this SVG file.")
    backend: str = inherited(InferSettings, "backend", "torchair")
