"""Read the header of a GGUF file (versions 2 and 3): its fields, and where its tensors lie.

The format's description is in ggml's repository, docs/gguf.md. The reader of the package gguf makes an array of each
token and follows every count that a file states (findings/gguf_reader_past_the_end.sh); this one is bounded by the
file's size, and fast.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from graph_gemma.graph_model.errors import UserError, shown

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32  # of the tensors, where general.alignment does not state it
_LARGEST_HEADER = 1 << 28  # bytes; those of Gemmas have about 6 MB, most of it the vocabulary


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of the file; its blocks are not read yet."""

    shape: tuple[int, ...]  # rows first, as in torch
    block_type: int  # ggml's number of the type of its blocks
    offset: int  # of its first byte in the file


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensors' data."""

    path: Path
    fields: Mapping[str, Any]  # numbers, texts, and lists of one of them
    tensors: Mapping[str, TensorPlace]
    file_size: int


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises UserError where it is none, is damaged, or ends too early."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from None


class _Reader:
    """Takes the values of a header one by one; never more than the file holds."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.position = 0

    def header(self) -> Header:
        if (magic := self.file.read(4)) != _MAGIC:
            raise UserError(
                f"{self.path} is not a GGUF file: it begins with {shown(magic)} instead of {shown(_MAGIC)}. Give a "
                "file that llama.cpp reads, or the directory of a Hugging Face checkpoint."
            )
        self.position = 4
        version = self.number("I")
        if version not in _VERSIONS:
            big = " (it is of a machine of the other byte order)" if version & 0xFFFF == 0 else ""
            raise UserError(
                f"{self.path} is GGUF of version {version}{big}; versions {' and '.join(map(str, _VERSIONS))} are "
                "read, little-endian. Write it again with a newer llama.cpp."
            )
        num_tensors, num_fields = self.number("Q"), self.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(self.count(num_fields, 12)):  # a name's length and a type take so many bytes
            name = self.text()
            self.once(name, fields)
            fields[name] = self.value(self.number("I"))
        places: dict[str, TensorPlace] = {}
        for _ in range(self.count(num_tensors, 24)):
            name = self.text()
            self.once(name, places)
            places[name] = self.place(name)
        start = -(-self.position // self.alignment(fields)) * self.alignment(fields)
        tensors = {name: TensorPlace(p.shape, p.block_type, p.offset + start) for name, p in places.items()}
        return Header(self.path, fields, tensors, self.size)

    def take(self, count: int) -> bytes:
        if self.position + count > min(self.size, _LARGEST_HEADER):
            raise self.damaged(f"at byte {self.position} it asks for {count} bytes more")
        self.position += count
        content = self.file.read(count)
        if len(content) != count:
            raise self.damaged(f"it ends at byte {self.position - count + len(content)}")
        return content

    def count(self, number: int, least_bytes: int) -> int:
        """A number of things of which each takes at least so many bytes."""
        if number * least_bytes > min(self.size, _LARGEST_HEADER) - self.position:
            raise self.damaged(f"at byte {self.position} it states {number} entries")
        return number

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        content = self.take(self.number("Q"))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{shown(content)} is no text in UTF-8") from None

    def value(self, kind: int, inside: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or inside:
            raise self.damaged(f"at byte {self.position} is a value of the unknown type {kind}")
        item, length = self.number("I"), self.number("Q")
        if item in _NUMBERS:
            code = f"<{_NUMBERS[item]}"
            return np.frombuffer(self.take(length * struct.calcsize(code)), dtype=code).tolist()
        return [self.value(item, inside=True) for _ in range(self.count(length, 8))]

    def place(self, name: str) -> TensorPlace:
        dimensions = self.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {shown(name)} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return TensorPlace(shape[::-1], self.number("I"), self.number("Q"))

    def alignment(self, fields: Mapping[str, Any]) -> int:
        value = fields.get("general.alignment", _ALIGNMENT)
        if not isinstance(value, int) or not 0 < value <= 1 << 20 or value & (value - 1):
            raise self.damaged(f"general.alignment is {shown(value)}, which is no power of two")
        return value

    def once(self, name: str, seen: Mapping[str, Any]) -> None:
        if name in seen:
            raise self.damaged(f"{shown(name)} is there twice")

    def damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: the header of this GGUF file is damaged or cut off: {what}; the file has {self.size} bytes. "
            "Copy it again from the original."
        )
