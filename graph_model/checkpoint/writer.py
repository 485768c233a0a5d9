"""Write a checkpoint directory, whole or not at all: weights in shards, config.json, further files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.whole_files import publish_directory, remove_leftovers, staging_directory

# In a directory that was written here: the names of all files in it. Nothing else is ever replaced.
FILE_LIST = "graph_gemma_files.json"
MAX_SHARD_BYTES = 4_000_000_000

ExtraFile = Path | bytes | Callable[[Path], bytes]
NamedTensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def save_checkpoint(
    directory: Path,
    tensors: NamedTensors,
    config_json: Mapping[str, Any],
    extra_files: Mapping[str, ExtraFile] | None = None,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Write weights, config.json and further files to `directory`, which appears only when all of it is written.

    `tensors` may be an iterator: no more than one shard of it is held at a time. `extra_files` maps a file name to its
    content, to the file to copy, or to a function that gives the content once all before it is written, from the
    directory that it lies in. `stem` begins the names of the files that hold weights. Raises UserError where
    `check_target` does and when writing fails.
    """
    directory = resolve_target(directory)
    check_target(directory, overwrite=overwrite)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with staging_directory(directory.parent) as staging:
            content = staging / directory.name  # made by us, so that it has the usual permissions
            content.mkdir()
            write_shards(content, tensors, max_shard_bytes, stem)
            (content / "config.json").write_text(json.dumps(dict(config_json), indent=2) + "\n", encoding="utf-8")
            for name, source in (extra_files or {}).items():
                if isinstance(source, Path):
                    shutil.copyfile(source, content / name)
                else:
                    (content / name).write_bytes(source(content) if callable(source) else source)
            names = sorted([*os.listdir(content), FILE_LIST])
            (content / FILE_LIST).write_text(json.dumps({"files": names}, indent=1) + "\n", encoding="utf-8")
            check_target(directory, overwrite=overwrite)  # the user may have put a file there meanwhile
            publish_directory(content, directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory} could not be written ({error}). Nothing was left there; check space and permissions."
        ) from error


def resolve_target(directory: Path) -> Path:
    """The directory without `..` and links above it; it may itself be a link, which `check_target` refuses."""
    directory = directory.parent / directory.name if directory.is_symlink() else directory.resolve()
    return directory.parent.resolve() / directory.name


def check_target(
    directory: Path, *, overwrite: bool, setting: str = "", inputs: Mapping[str, Path] | None = None
) -> None:
    """Raise UserError unless a checkpoint may be written to `directory`; long jobs call it before they start.

    setting: what names the directory. inputs: the settings that name what the job reads, files or directories; none of
    it may lie where the checkpoint is to be. A directory is replaced only if this package wrote all that it holds.
    """
    target = resolve_target(directory)
    for name, path in (inputs or {}).items():
        for file in (path, *(filter(Path.is_file, path.iterdir()) if path.is_dir() else ())):
            if file.resolve().is_relative_to(target):
                raise UserError(
                    f"{setting} is {directory} and {name} is {path}: the result would replace what it is made from. "
                    f"Give another {setting}."
                )
    remove_leftovers(target.parent)
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{directory} exists already. Choose another directory, or replace it with overwrite=true.")
    foreign = "it is no directory" if target.is_symlink() or not target.is_dir() else _foreign_entry(target)
    if foreign:
        raise UserError(
            f"{directory}: overwrite=true replaces a directory only if this package wrote all that is in it, and "
            f"{foreign}. Move that away, or choose another directory."
        )


def _foreign_entry(directory: Path) -> str:
    """A clause about the first file that the directory's list of files does not name; "" if there is none."""
    try:
        listed = json.loads((directory / FILE_LIST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = []
    for path in sorted(directory.iterdir()):
        if path.name not in listed or path.is_dir():
            return (
                f"{FILE_LIST} there does not name {path.name}" if listed else f"it holds {path.name} and no {FILE_LIST}"
            )
    return ""


def write_shards(
    directory: Path,
    tensors: NamedTensors,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
    shard_stem: str | None = None,
) -> list[Path]:
    """Write <stem>.safetensors, or above `max_shard_bytes` shards and an index, into an existing directory.

    shard_stem: begins the shards' names; None: `stem` does. Returns the files, the index last. Tensors may be on any
    device, strided, or share storage as a whole.
    """
    shards: list[list[str]] = []  # the names in each shard
    total = 0
    pending: dict[str, Tensor] = {}
    pending_bytes = 0
    seen: set[str] = set()

    def flush() -> None:
        path = directory / f"shard-{len(shards)}"
        path.touch()
        mode = path.stat().st_mode  # the umask's, which safetensors does not keep to
        save_file(pending, str(path), metadata={"format": "pt"})
        path.chmod(mode)
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if name in seen:
            raise ValueError(f"tensor {name} is given twice")
        seen.add(name)
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = _storable(tensor, pending)
        pending_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    return _name_shards(directory, shards, total, stem, shard_stem or stem)


def _storable(tensor: Tensor, pending: Mapping[str, Tensor]) -> Tensor:
    tensor = tensor.detach().to("cpu").contiguous()
    shared = any(tensor.data_ptr() == other.data_ptr() for other in pending.values())
    return tensor.clone() if shared else tensor


def _name_shards(directory: Path, shards: list[list[str]], total: int, stem: str, shard_stem: str) -> list[Path]:
    """Give the shards their final names, which say how many there are, and write the index."""
    if len(shards) == 1:
        return [(directory / "shard-0").rename(directory / f"{stem}.safetensors")]
    paths = []
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file_name = f"{shard_stem}-{index + 1:05}-of-{len(shards):05}.safetensors"
        paths.append((directory / f"shard-{index}").rename(directory / file_name))
        weight_map.update(dict.fromkeys(names, file_name))
    index_path = directory / f"{stem}.safetensors.index.json"
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    index_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [*paths, index_path]
