"""Damage to the content of files, drawn by hypothesis: JSON values, bytes, lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# JSON that a config may hold by accident or by malice: numbers of any size, deep nesting, long and odd texts.
TEXT = st.text(max_size=8) | st.sampled_from(["", "\x1b[31m", "\ud800", "../x", "a" * 5000, "gemma", "W8A8", "FLOAT"])
_NUMBER = st.integers() | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**12, 10**400, 10**4299]) | st.floats()
_SCALAR = st.none() | st.booleans() | _NUMBER | TEXT
VALUES = st.recursive(
    _SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container within a JSON value, with each of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def damaged(data: Any, value: Any) -> Any:
    """A copy of a JSON value with one to three places replaced, removed, renamed or repeated."""
    copy = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(_places(copy))
        if not places:
            return data.draw(VALUES)
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        change = data.draw(st.sampled_from(["replace", "remove", "add", "swap"]))
        if change == "replace":
            container[key] = data.draw(VALUES)
        elif change == "remove":
            del container[key]
        elif change == "add" and isinstance(container, dict):
            container[data.draw(TEXT)] = data.draw(VALUES)
        elif change == "swap":
            other, place = places[data.draw(st.integers(0, len(places) - 1))]
            container[key] = json.loads(json.dumps(other[place]))
    return copy


def damaged_bytes(data: Any, content: bytes) -> bytes:
    """A copy with bytes changed, cut off or repeated; mostly near the beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(changed), 4096)))
        change = data.draw(st.sampled_from(["byte", "cut", "insert"]))
        if change == "byte" and place < len(changed):
            changed[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del changed[place : place + data.draw(st.integers(1, 64))]
        else:
            changed[place:place] = data.draw(st.binary(max_size=16))
    return bytes(changed)


def damaged_lines(data: Any, content: bytes) -> bytes:
    """A copy with one to three lines dropped, exchanged or damaged, or with other numbers in them."""
    lines = content.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        place, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        change = data.draw(st.sampled_from(["drop", "exchange", "bytes", "number"]))
        if change == "drop":
            lines[place] = b""
        elif change == "exchange":
            lines[place], lines[other] = lines[other], lines[place]
        elif change == "bytes":
            lines[place] = damaged_bytes(data, lines[place])
        else:
            number = data.draw(st.integers() | st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 10**400]))
            lines[place] = re.sub(rb"\d+", str(number).encode(), lines[place])
    return b"".join(lines)
