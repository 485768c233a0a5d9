"""Convert weights to safetensors: python runners/convert.py model.path=DIR, or model.path=FILE.gguf output_dir=DIR."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.convert import ConvertSettings


def convert(settings: ConvertSettings) -> None:
    """Write the safetensors, and print names and sizes of the files written."""
    path = Path(settings.model.path).expanduser()
    written = _convert_gguf(path, settings) if path.is_file() else _convert_directory(path, settings)
    for file in written:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


def _convert_gguf(path: Path, settings: ConvertSettings) -> list[Path]:
    from graph_gemma.graph_model.gguf import convert_gguf

    if settings.output_dir is None:
        raise UserError(
            "output_dir is missing: a GGUF file is converted to a new directory. Give output_dir=DIR, which must not "
            "exist."
        )
    output_dir = Path(settings.output_dir).expanduser()
    convert_gguf(
        path,
        output_dir,
        dtype=settings.dtype or "float32",
        overwrite=settings.overwrite,
        max_shard_bytes=settings.max_shard_bytes,
        report=print,
    )
    return sorted(output_dir.iterdir())


def _convert_directory(directory: Path, settings: ConvertSettings) -> list[Path]:
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_gemma.graph_model.checkpoint.convert import convert_checkpoint

    for name in ("output_dir", "dtype"):
        if getattr(settings, name) is not None:
            raise UserError(
                f"{name} is for GGUF files, and model.path={directory} is none: what is in a directory is converted "
                f"there, bit for bit. Leave {name} out."
            )
    return convert_checkpoint(
        directory, overwrite=settings.overwrite, max_shard_bytes=settings.max_shard_bytes, report=print
    )


if __name__ == "__main__":
    main(convert, "convert")
