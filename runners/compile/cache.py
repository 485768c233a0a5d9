"""The compile cache on disk: entries are found by the content of everything that made them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graph_model.errors import UserError

_COMPILING = ("graph_model", "passes", "runners/backends", "runners/compile")


@dataclass(frozen=True)
class CompileCache:
    """Entries under `root`: a JSON file named by the key, which names the backend's artifact by its digest.

    An entry appears at once or not at all, and is used only if its artifact still has the digest.
    Artifacts hold code, so a root that other users can write to is refused.
    """

    root: Path

    def __post_init__(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"cache_dir: {self.root} cannot be created ({error.strerror}). Name a directory that you can write to."
            ) from None
        status = self.root.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise UserError(
                f"cache_dir: {self.root} belongs to another user or is writable by others. Compiled code is loaded "
                "from it; name a directory that only you can write to (chmod go-w), or another one."
            )

    def find(self, key: str) -> tuple[dict[str, Any], Path] | None:
        """Description and artifact path of an entry, or None if there is none or it is damaged."""
        try:
            entry = json.loads(self._entry(key).read_text(encoding="utf-8"))
            artifact = self._artifact(entry["artifact"])
            intact = hashlib.sha256(artifact.read_bytes()).hexdigest() == entry["artifact"]
            return (entry["description"], artifact) if intact else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def store(self, key: str, description: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Add an entry; `write` writes the artifact to the path that it is given; if it writes none, none is added."""
        folder = self._entry(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
            artifact, entry = Path(temporary) / "artifact", Path(temporary) / "entry"
            write(artifact)
            if not artifact.exists():
                return
            digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
            entry.write_text(json.dumps({"artifact": digest, "description": description}, indent=1), encoding="utf-8")
            os.replace(artifact, self._artifact(digest))
            os.replace(entry, self._entry(key))

    def _entry(self, key: str) -> Path:
        return self.root / "steps" / f"{key}.json"

    def _artifact(self, digest: str) -> Path:
        return self.root / "steps" / digest


def cache_key(ingredients: Mapping[str, Any]) -> str:
    """A digest of everything that decides what is compiled; `ingredients` must be JSON."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


@cache
def source_digest(*more: str) -> str:
    """A digest of the sources that capture, rewrite and compile graphs, and of those of `more` packages."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(_sources(root / package for package in (*_COMPILING, *more))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(folders: Iterable[Path]) -> Iterable[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
