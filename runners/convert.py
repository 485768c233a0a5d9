"""python runners/convert.py model.path=DIR: pytorch_model*.bin to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runners.command_line.entry import main, require


def convert(settings: Any) -> None:
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_model.checkpoint.convert import convert_checkpoint

    path = require(settings, "model.path", str, "the checkpoint's directory")
    written = convert_checkpoint(
        Path(path).expanduser(),
        overwrite=require(settings, "overwrite", bool, "true or false"),
        max_shard_bytes=require(settings, "max_shard_bytes", int, "a number of bytes"),
        report=print,
    )
    for file in written:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(convert, "convert")
