"""Read a checkpoint, quantized or not: safetensors mapped into memory, checked against the config when opened."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from graph_gemma.graph_model.checkpoint.anti_outlier import wrapped_norms
from graph_gemma.graph_model.checkpoint.expected import (
    EMBEDDING,
    HEAD,
    TensorHeader,
    check_float_dtypes,
    check_tensors,
    expected_tensors,
    harmless,
    head_differs_message,
    plain_names,
)
from graph_gemma.graph_model.checkpoint.layout import WeightFiles, find_safetensors
from graph_gemma.graph_model.checkpoint.quantized import (
    check_description,
    check_dtypes,
    check_norm_biases,
    check_values,
    expected_names,
    read_quantization,
    stored_dtype,
)
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.foreign import some
from graph_gemma.graph_model.quantization.linears import Quantization

_READ_AHEAD = 1 << 17  # as much as every system reads at one request


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open safetensors file."""

    file: Any
    name: str  # in the file; the model may name it otherwise
    header: TensorHeader

    def read(self) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor


class Checkpoint:
    """The tensors of an open checkpoint. A context manager; tensors that were read stay valid after `close`.

    `names` are the tensors that the model needs, in the model's order; `quantization` says which of them are int8.
    """

    def __init__(
        self, names: list[str], tensors: Mapping[str, StoredTensor], quantization: Quantization | None = None
    ) -> None:
        self.names = names
        self.quantization = quantization
        self._tensors = tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].header.shape

    def dtype(self, name: str) -> torch.dtype:
        return stored_dtype(self._tensors[name].header.dtype)

    def read(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file: bytes are read from disk when they are used. Do not write to it."""
        return self._tensors[name].read()

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        """The part [start, stop) along `dim`, a view that touches no other bytes; strided unless `dim` is 0.

        The system is told which pages the part needs: it would read megabytes ahead of it otherwise.
        """
        size = self.shape(name)[dim]
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{name}: [{start}, {stop}) is not within dimension {dim} of size {size}")
        tensor = self.read(name)
        part = tensor.narrow(dim, start, stop - start)
        _advise(tensor.data_ptr(), tensor.nbytes, "MADV_RANDOM")
        row = tensor.stride(dim) * tensor.element_size()
        for begin in range(part.data_ptr(), tensor.data_ptr() + tensor.nbytes, size * row):
            end = begin + (stop - start) * row
            for block in range(begin, end, _READ_AHEAD):
                _advise(block, min(_READ_AHEAD, end - block), "MADV_WILLNEED")
        return part

    def release(self, name: str) -> None:
        """Give the tensor's resident pages back to the system; a later use reads them from the file again.

        Pages of a mapped file count as the process's memory once used. Loading that copies tensors elsewhere
        releases each one after its copy, and so never holds two copies of the model. No effect except on Linux.
        """
        tensor = self.read(name)
        # Whole pages inside the tensor only: its first and last page may also hold a neighbour.
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            _advise(start, stop - start, "MADV_DONTNEED")

    def close(self) -> None:
        self._tensors = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_checkpoint(directory: Path, config: GemmaConfig) -> Checkpoint:
    """Open the safetensors of `directory` and check names, shapes and dtypes against `config`.

    Reads headers only (and a few rows of the head where a tied model's file carries one). Layout: model.safetensors;
    or shards with model.safetensors.index.json; or one *.safetensors file of another name.
    Raises UserError naming the file and what is wrong with it.
    """
    quantization = read_quantization(directory, config)
    layout = find_safetensors(directory)
    tensors: dict[str, StoredTensor] = {}
    for path in layout.paths:
        file = _open(path)
        for name in _names(path, file, layout, config):
            view = file.get_slice(name)
            tensors[name] = StoredTensor(file, name, TensorHeader(tuple(view.get_shape()), view.get_dtype()))
    for name, plain in plain_names(tensors).items():
        tensors[plain] = tensors.pop(name)
    if quantization is None:
        headers = _headers(tensors)
        check_float_dtypes(directory, headers, [name for name, header in headers.items() if header.dtype == "I8"])
        names = check_tensors(headers, config, directory)
    else:
        names = _check_quantized(directory, config, quantization, tensors)
    head_is_own = quantization is not None and HEAD.removesuffix(".weight") in quantization.linears
    if config.tie_word_embeddings and HEAD in tensors and not head_is_own:
        _check_tied_head(directory, tensors)
    return Checkpoint(names, tensors, quantization)


def _headers(tensors: Mapping[str, StoredTensor]) -> dict[str, TensorHeader]:
    return {name: tensor.header for name, tensor in tensors.items()}


def _check_quantized(
    directory: Path, config: GemmaConfig, quantization: Quantization, tensors: dict[str, StoredTensor]
) -> list[str]:
    """The names to load; norms that are stored under other names get the model's, and their biases leave `tensors`."""

    def read(name: str) -> Tensor:
        return tensors[name].read()

    stored = set(tensors)
    for name, other in wrapped_norms(directory, stored).items():
        tensors[name] = tensors.pop(other)
    for name in check_norm_biases(directory, stored, read):
        del tensors[name]
    floats = expected_tensors(config)
    if HEAD.removesuffix(".weight") in quantization.linears:
        floats[HEAD] = (config.vocab_size, config.hidden_size)
    expected, optional = expected_names(config, quantization, floats)
    headers = _headers(tensors)
    check_dtypes(directory, headers, quantization)
    names = check_tensors(headers, config, directory, expected, optional)
    check_description(directory, config, stored)
    check_float_dtypes(
        directory, headers, [name for name in names if name.rpartition(".")[0] not in quantization.linears]
    )
    check_values(directory, config, quantization, headers, read)
    return names


def _advise(start: int, size: int, advice: str) -> None:
    """madvise(2) on the pages that hold [start, start + size). No effect except on Linux."""
    if sys.platform == "linux":
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        length = ctypes.c_size_t(start + size - first)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), length, ctypes.c_int(getattr(mmap, advice)))


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); it is {path.stat().st_size} bytes long. "
            f"{_likely_cause(path)}"
        ) from None


def _likely_cause(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return "Check the file's permissions."
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the file itself: run 'git lfs pull' in the checkpoint's repository."
    return "It is truncated or damaged: copy it again from the original."


def _names(path: Path, file: Any, layout: WeightFiles, config: GemmaConfig) -> list[str]:
    """The tensors to take from this file. With an index, file and index must agree on what the model needs."""
    present = list(file.keys())
    if layout.weight_map is None:
        return present
    promised = {name for name, shard in layout.weight_map.items() if shard == path.name}
    absent = sorted(name for name in promised.difference(present) if not harmless(name, config))
    if absent:
        raise UserError(
            f"{path} lacks {len(absent)} tensors that the index says it holds, first {some(absent, 1)}. "
            "Index and shards must belong together: copy them again from the same original."
        )
    unlisted = sorted(name for name in present if name not in layout.weight_map)
    needed = [name for name in unlisted if not harmless(name, config)]
    if needed:
        raise UserError(
            f"{path} holds {len(needed)} tensors that the index does not name, first {some(needed, 1)}. "
            "Index and shards must belong together: copy them again from the same original."
        )
    return [*sorted(promised.intersection(present)), *unlisted]


def _check_tied_head(directory: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse a head that differs from the embedding it is tied to: transformers 4 drops it, transformers 5 keeps it.

    A few rows tell them apart; reading them all would double the work for what is nearly always a plain copy.
    """
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    same = head.header == embedding.header
    if same:
        rows = torch.linspace(0, head.header.shape[0] - 1, 16).long()
        same = torch.equal(head.read()[rows], embedding.read()[rows])
    if not same:
        raise UserError(head_differs_message(directory))
