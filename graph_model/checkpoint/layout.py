"""Find the files of a checkpoint directory that hold the weights: one file, or shards with an index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.foreign import check_other_files, some
from graph_gemma.graph_model.json_file import read_json_object

_SHARD = re.compile(r"(?P<stem>.+)-\d+-of-\d+(?P<suffix>\.[a-z]+)")

_LONGEST_FILE_NAME = 255  # bytes, on every file system


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights."""

    paths: tuple[Path, ...]
    weight_map: dict[str, str] | None = None  # tensor name to file name, from the index; None: there is one file


def find_safetensors(directory: Path) -> WeightFiles:
    """The safetensors of a Hugging Face directory. Raises UserError where there are none or no clear set."""
    if not directory.is_dir():
        raise UserError(f"model.path: {directory} is not a directory. Give the directory of a Hugging Face checkpoint.")
    found = _find(directory, "model.safetensors", ".safetensors")
    if found is not None:
        return found
    if _visible(directory, "pytorch_model*.bin"):
        raise UserError(
            f"{directory} holds its weights as pytorch_model*.bin; only safetensors are loaded. "
            f"Convert them once with: graph-gemma convert model.path={directory}"
        )
    check_other_files(directory)
    raise UserError(
        f"{directory} holds no weights: no *.safetensors file is there. A checkpoint directory has "
        "model.safetensors, or model-*.safetensors with model.safetensors.index.json."
    )


def find_pytorch_bin(directory: Path) -> WeightFiles:
    """The pytorch_model*.bin of a directory. Raises UserError where there are none or no clear set."""
    found = _find(directory, "pytorch_model.bin", ".bin", prefix="pytorch_model")
    if found is None:
        raise UserError(
            f"{directory} holds no pytorch_model*.bin, so there is nothing to convert. The directory must have "
            "pytorch_model.bin, or pytorch_model-*.bin with pytorch_model.bin.index.json."
        )
    return found


def _find(directory: Path, usual: str, suffix: str, prefix: str = "") -> WeightFiles | None:
    """The usual single file first, as transformers does; then an index; then a single file of another name."""
    if (directory / usual).is_file():
        return WeightFiles((directory / usual,))
    usual_index = directory / f"{usual}.index.json"
    indexes = [usual_index] if usual_index.is_file() else _visible(directory, f"{prefix}*{suffix}.index.json")
    if len(indexes) == 1:
        return _from_index(indexes[0], suffix)
    files = _visible(directory, f"{prefix}*{suffix}")
    if len(files) == 1 and not _SHARD.fullmatch(files[0].name):
        return WeightFiles((files[0],))
    if files:
        raise UserError(
            f"{directory} holds its weights in parts ({files[0].name}, ...; files *{suffix} in all: {len(files)}) and "
            f"{len(indexes) or 'no'} index files. The parts need one index, {usual}.index.json, that says which "
            "tensor is in which. Copy it from the original."
        )
    return None


def _visible(directory: Path, pattern: str) -> list[Path]:
    """The files that match, without hidden ones: some systems write a "._NAME" next to each file."""
    return sorted(p for p in directory.glob(pattern) if p.is_file() and not p.name.startswith("."))


def index_files(index: Path) -> list[Path]:
    """The files that a safetensors index names and that are there; none where it cannot be read."""
    try:
        names = set(_read_weight_map(index, ".safetensors").values())
    except UserError:
        return []
    return [index.parent / name for name in sorted(names) if (index.parent / name).is_file()]


def _from_index(index: Path, suffix: str) -> WeightFiles:
    weight_map = _read_weight_map(index, suffix)
    directory = index.parent
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise UserError(
            f"{index} names {len(names)} files, of which {len(absent)} are missing: {some(absent)}. "
            "Copy the missing files from the original."
        )
    families = {match["stem"] for match in map(_SHARD.fullmatch, names) if match}
    for path in _visible(directory, f"*{suffix}"):
        match = _SHARD.fullmatch(path.name)
        if match and match["stem"] in families and path.name not in names:
            raise UserError(
                f"{path} is a shard that {index.name} does not name. Index and shards must belong together: copy "
                "the index again from the original, or remove the shard if it is left over from another save."
            )
    return WeightFiles(tuple(directory / name for name in names), weight_map)


def _read_weight_map(index: Path, suffix: str) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{index} has no weight_map, the object that maps each tensor's name to its file. "
            "Copy it again from the original."
        )
    for tensor, name in weight_map.items():
        # A name with a path in it could make us read outside the directory.
        plain = isinstance(name, str) and re.fullmatch(r"[^/\\:\x00]+", name) and not name.startswith(".")
        if not plain or not name.endswith(suffix) or len(name.encode("utf-8", "replace")) > _LONGEST_FILE_NAME:
            raise UserError(
                f"{index} says that {tensor} is in {shown(name)}; it must be the plain name of a *{suffix} file in the "
                "same directory. Copy the index again from the original."
            )
    return weight_map


def check_link(directory: Path, name: str) -> Path:
    """The path of a file whose content is copied elsewhere. Raises UserError if a link leads out of the directory.

    A checkpoint from elsewhere must not make us publish a file of this machine. The cache of huggingface_hub is made
    of links from snapshots/REVISION to blobs/, which are followed.
    """
    path, real = (directory / name).resolve(), directory.resolve()
    roots = [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
    if not any(path.is_relative_to(root) for root in roots):
        raise UserError(
            f"{directory / name} is a link to {path}, outside the checkpoint's directory, and is not copied from "
            "there. Replace the link by the file, if it belongs to the checkpoint."
        )
    return directory / name
