"""Convert pytorch_model*.bin to safetensors in the same directory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from graph_gemma.graph_model.checkpoint.expected import (
    EMBEDDING,
    FLOAT_DTYPES,
    HEAD,
    TensorHeader,
    check_tensors,
    head_differs_message,
)
from graph_gemma.graph_model.checkpoint.layout import find_pytorch_bin, index_files
from graph_gemma.graph_model.checkpoint.reader import open_checkpoint
from graph_gemma.graph_model.checkpoint.writer import MAX_SHARD_BYTES, write_shards
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.whole_files import replace_files, staging_directory

_SAFETENSORS_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


def convert_checkpoint(
    directory: Path,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write the tensors of pytorch_model*.bin as safetensors in the same directory; returns the files written.

    Only tensors are unpickled, never objects. A tensor that is stored twice, as the head of a tied model, is written
    once. The result is read again and compared bit for bit before it takes its place; on any failure the directory
    is left as it was. `report` is told of each step. Raises UserError for bad input.
    """
    config = read_config(directory)
    source = find_pytorch_bin(directory)
    previous = [p for p in sorted(directory.glob("*.safetensors*")) if p.is_file() and not p.name.startswith(".")]
    if previous and not overwrite:
        raise UserError(
            f"{directory} holds safetensors already ({previous[0].name}). Nothing was converted; replace them with "
            "overwrite=true."
        )
    for path in source.paths:
        if path.is_symlink() and path.resolve() in [file.resolve() for file in previous]:
            raise UserError(
                f"model.path: {path} is a link to {path.resolve().name}, which would be replaced by what is made of "
                f"it. Put the file itself in place of the link."
            )
    tensors: dict[str, Tensor] = {}
    for path in source.paths:
        part = load_pytorch_bin(path)
        report(f"read {path.name}: {len(part)} tensors")
        tensors.update(part)
    absent = sorted(set(source.weight_map or ()).difference(tensors))
    if absent:
        raise UserError(
            f"{directory}: the index names {len(absent)} tensors that no file holds, first {absent[0]}. "
            "Index and files must belong together: copy them again from the same original."
        )
    headers = {
        name: TensorHeader(tuple(t.shape), _SAFETENSORS_NAMES.get(t.dtype, str(t.dtype))) for name, t in tensors.items()
    }
    names = check_tensors(headers, config, directory)
    if config.tie_word_embeddings and HEAD in tensors and not _same_bits(tensors[HEAD], tensors[EMBEDDING]):
        raise UserError(head_differs_message(directory))
    selected = {name: tensors[name] for name in names}
    try:
        with staging_directory(directory) as staging:
            written = write_shards(staging, selected, max_shard_bytes, shard_stem=_free_stem(directory))
            _compare(staging, config, selected)
            report(f"wrote {len(names)} tensors, read them again: equal bit for bit")
            return _install(written, directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory}: the safetensors could not be written ({error}). The directory is as it was; check space "
            "and permissions."
        ) from error


def load_pytorch_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, mapped where its format allows that. Raises UserError."""
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # files older than torch 1.6 are plain pickles and cannot be mapped
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be loaded as a file of tensors ({type(error).__name__}: {reason}). It is damaged, or it "
            "holds Python objects, which are never loaded because they could run code. Copy it again from the "
            "original, or look for a safetensors version of the checkpoint."
        ) from None
    if not isinstance(content, dict) or not content:
        found = "no tensors" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found}; it must hold a dict that maps names to tensors.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise UserError(
                f"{path}: the entry {name!r} is not a plain tensor but a {type(tensor).__name__}. The file must map "
                "names to the weights of the model and hold nothing else."
            )
    return {name: tensor.detach() for name, tensor in content.items()}


def _compare(staging: Path, config: GemmaConfig, originals: dict[str, Tensor]) -> None:
    with open_checkpoint(staging, config) as checkpoint:
        for name, original in originals.items():
            if not _same_bits(checkpoint.read(name), original):
                raise OSError(f"{name} reads back different from what was written")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of the stored bits, so that NaN equals itself and -0 differs from 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    as_integer = torch.int32 if a.element_size() == 4 else torch.int16
    return torch.equal(a.contiguous().view(as_integer), b.contiguous().view(as_integer))


def _install(written: list[Path], directory: Path) -> list[Path]:
    """Move the new files into `directory`, in place of those that a reader of the model took until now."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    replaced = [path for path in (single, index) if path.is_file()]
    if index.is_file():
        replaced += index_files(index)
    return replace_files(written, [path for path in replaced if path.name != written[-1].name], directory)


def _free_stem(directory: Path) -> str:
    """How the new shards' names begin; none may have the name of an old one, as both are there for a moment."""
    stems = chain(["model"], (f"model.{number}" for number in count(2)))
    return next(stem for stem in stems if not any(directory.glob(f"{stem}-*-of-*.safetensors")))
