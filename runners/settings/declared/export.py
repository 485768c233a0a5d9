"""The settings of runners/export.py."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.schema import inherited, required, setting


class ExportSettings(InferSettings):
    """Write a model as Ascend graphs: one GE graph for each bucket that serving can come to, the weights as the graphs
    read them, and a manifest. Nothing is run and no device is needed. The model's settings are those of graph-gemma
    infer; num_blocks=null sizes the KV cache by the memory of the chip that soc names."""

    export_dir: str = required(
        "the directory to write", "Directory to write; it appears only when all of it is written."
    )
    overwrite: bool = setting(False, "Replace a bundle that is there already.")
    sample: bool = setting(False, "Also export the steps that sample; without them every request is greedy.")
    backend: str = inherited(InferSettings, "backend", "torchair")
