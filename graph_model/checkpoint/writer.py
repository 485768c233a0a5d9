"""Write a checkpoint directory whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from graph_model.errors import UserError

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
    directory = Path(directory).absolute()
    check_target(directory, overwrite=overwrite)
    staging: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        content = staging / directory.name  # made by us, so that it has the usual permissions
        content.mkdir()
        write_shards(content, tensors, max_shard_bytes, stem)
        (content / "config.json").write_text(json.dumps(dict(config_json), indent=2) + "\n", encoding="utf-8")
        for name, source in (extra_files or {}).items():
            if isinstance(source, Path):
                shutil.copyfile(source, content / name)
            else:
                (content / name).write_bytes(source(content) if callable(source) else source)
        _publish(content, directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory} could not be written ({error}). Nothing was left behind there; check space and permissions."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def check_target(directory: Path, *, overwrite: bool) -> None:
    """Raise UserError unless a checkpoint may be written to `directory`; long jobs call it before they start."""
    if not directory.exists() and not directory.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{directory} exists already. Choose another directory, or replace it with overwrite=true.")
    replaceable = directory.is_dir() and not directory.is_symlink()
    if not replaceable or not ((directory / "config.json").is_file() or not any(directory.iterdir())):
        raise UserError(
            f"{directory} exists and is not a checkpoint directory (it has no config.json), so overwrite=true does "
            "not replace it. Choose another directory."
        )


def write_shards(
    directory: Path, tensors: NamedTensors, max_shard_bytes: int = MAX_SHARD_BYTES, stem: str = "model"
) -> list[Path]:
    """Write <stem>.safetensors, or above `max_shard_bytes` shards and an index, into an existing directory.

    Returns the files, the index last. Tensors may be on any device, strided, or share storage as a whole.
    """
    shards: list[list[str]] = []  # the names in each shard
    total = 0
    pending: dict[str, Tensor] = {}
    pending_bytes = 0
    seen: set[str] = set()

    def flush() -> None:
        save_file(pending, str(directory / f"shard-{len(shards)}"), metadata={"format": "pt"})
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
    return _name_shards(directory, shards, total, stem)


def _storable(tensor: Tensor, pending: Mapping[str, Tensor]) -> Tensor:
    tensor = tensor.detach().to("cpu").contiguous()
    shared = any(tensor.data_ptr() == other.data_ptr() for other in pending.values())
    return tensor.clone() if shared else tensor


def _name_shards(directory: Path, shards: list[list[str]], total: int, stem: str) -> list[Path]:
    """How many shards there are is known only at the end, and their names say it."""
    if len(shards) == 1:
        return [(directory / "shard-0").rename(directory / f"{stem}.safetensors")]
    paths = []
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file_name = f"{stem}-{index + 1:05}-of-{len(shards):05}.safetensors"
        paths.append((directory / f"shard-{index}").rename(directory / file_name))
        weight_map.update(dict.fromkeys(names, file_name))
    index_path = directory / f"{stem}.safetensors.index.json"
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    index_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [*paths, index_path]


def _publish(content: Path, target: Path) -> None:
    """Move `content` to `target`; what was there is removed last, or comes back if the move fails."""
    if not target.exists():
        os.rename(content, target)
        return
    # Not inside the staging directory, which is removed whatever happens.
    previous = content.parent.with_name(f"{content.parent.name}.previous")
    os.rename(target, previous)
    try:
        os.rename(content, target)
    except BaseException:
        os.rename(previous, target)
        raise
    shutil.rmtree(previous, ignore_errors=True)
