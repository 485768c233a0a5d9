"""Convert pytorch_model*.bin to safetensors: python runners/convert.py model.path=DIR."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runners.command_line.entry import main

if TYPE_CHECKING:
    from runners.settings.declared.convert import ConvertSettings


def convert(settings: ConvertSettings) -> None:
    """Write the safetensors, and print their names and sizes."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_model.checkpoint.convert import convert_checkpoint

    written = convert_checkpoint(
        Path(settings.model.path).expanduser(),
        overwrite=settings.overwrite,
        max_shard_bytes=settings.max_shard_bytes,
        report=print,
    )
    for file in written:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(convert, "convert")
