"""The compile cache on disk: entries are found by the content of everything that made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graph_model.errors import UserError

ARTIFACT = "artifact"
_META = "meta.json"


@dataclass(frozen=True)
class CompileCache:
    """Entries under `root`, one folder each: the backend's artifact and a JSON description.

    An entry appears at once or not at all, and is used only if its artifact has the digest that was written with it.
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
        folder = self._folder(key)
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            digest = hashlib.sha256((folder / ARTIFACT).read_bytes()).hexdigest()
        except (OSError, ValueError):
            return None
        return (meta["description"], folder / ARTIFACT) if meta.get("sha256") == digest else None

    def store(self, key: str, description: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Add an entry; `write` writes the artifact to the path that it is given."""
        folder = self._folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            write(temporary / ARTIFACT)
            digest = hashlib.sha256((temporary / ARTIFACT).read_bytes()).hexdigest()
            meta = {"sha256": digest, "description": description}
            (temporary / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            if folder.exists():  # damaged, or written by another process in the meantime
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _folder(self, key: str) -> Path:
        return self.root / "steps" / key


def cache_key(ingredients: Mapping[str, Any]) -> str:
    """A digest of everything that decides what is compiled; `ingredients` must be JSON."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


@cache
def source_digest() -> str:
    """A digest of the sources that capture, rewrite and compile graphs."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(_sources((package, package.parent / "passes"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(folders: Iterable[Path]) -> Iterable[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*.py") if "demo" not in path.parts)
