"""Write a model as Ascend graphs: python runners/export.py export_dir=DIR [SETTING=VALUE ...]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.export import ExportSettings


def export(settings: ExportSettings) -> None:
    """Lower every bucket, write the bundle, and print its graphs."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from pathlib import Path

    from graph_gemma.graph_model.checkpoint.writer import check_target
    from graph_gemma.runners.llm.exporting import export_model
    from graph_gemma.runners.settings.model_settings import require_torchair, resolve_settings

    directory, overwrite = Path(settings.export_dir).expanduser(), settings.overwrite
    model_settings = resolve_settings(settings)
    source = model_settings.checkpoint_dir
    inputs = {} if source is None else {"model.path": source}
    check_target(directory, overwrite=overwrite, setting="export_dir", inputs=inputs)
    require_torchair(model_settings)
    for bucket in export_model(model_settings, directory, sample=settings.sample, overwrite=overwrite):
        print(f"{directory / str(bucket)}.pb")


if __name__ == "__main__":
    main(export, "export")
