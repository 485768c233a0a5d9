"""The compile cache on disk: entries are found by the content of everything that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.whole_files import staging_directory, write_file
from graph_gemma.runners.cache.directory import private_directory, prune
from graph_gemma.runners.cache.store import mark_used, unwritable

_COMPILING = ("graph_model", "passes", "runners/backends", "runners/compile")


@dataclass(frozen=True)
class CompileCache:
    """Entries under `root`: a JSON file named by the key, which names the backend's artifact by its digest.

    An entry appears at once or not at all, and is used only if it and its artifact still have their digests. Artifacts
    hold code: see `private_directory`.
    """

    root: Path
    limit: float | None = None  # bytes that all files under `root` may have; None: any number

    def find(self, key: str) -> tuple[dict[str, Any], Path] | None:
        """Description and artifact path of an entry, or None if there is none or it is damaged."""
        path = private_directory(self.root) / "steps" / f"{key}.json"
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            artifact = path.with_name(entry["artifact"])
            intact = entry["digest"] == _digest_of(entry["artifact"], entry["description"])
            if not intact or hashlib.sha256(artifact.read_bytes()).hexdigest() != entry["artifact"]:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        mark_used(path)
        mark_used(artifact)
        return entry["description"], artifact

    def store(self, key: str, description: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Add an entry; `write` writes the artifact to the path that it is given; if it writes none, none is added.

        Raises UserError if the directory cannot be written, before `write` is called where that is known before.
        """
        root = private_directory(self.root)
        folder = root / "steps"
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            with staging_directory(folder) as staging:
                artifact = staging / "artifact"
                write(artifact)
                if artifact.exists():
                    content = artifact.read_bytes()
                    digest = hashlib.sha256(content).hexdigest()
                    entry = {"digest": _digest_of(digest, description), "artifact": digest, "description": description}
                    write_file(folder / digest, content)
                    write_file(folder / f"{key}.json", json.dumps(entry, indent=1))
        except OSError as error:
            raise UserError(unwritable(root, error)) from error
        if self.limit is not None:
            prune(root, self.limit)


def _digest_of(artifact: str, description: Any) -> str:
    """The digest of an entry's content."""
    return hashlib.sha256(json.dumps([artifact, description], sort_keys=True).encode()).hexdigest()


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
