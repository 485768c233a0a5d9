"""Bundles: the steps of a model as GE graphs with all that running them needs, in one directory.

manifest.json          format, versions, chip, model, buckets with their inputs; the other files' hashes
BUCKET.pb              the GE graph (ge.proto.ModelDef), with BUCKET.pbtxt, torchair's text of it
BUCKET.options.json    torchair's compile options for the graph
ge_ir.binpb            the descriptor of ge.proto, so that other programs read the graphs without torchair
model.safetensors      weights as the graphs read them, or shards with an index
config.json            the model's config
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, GeGraphError
from graph_gemma.graph_model.ascend.graph_file import read_model
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.errors import UserError

FORMAT = 2
MANIFEST = "manifest.json"
DESCRIPTOR = "ge_ir.binpb"
_CHUNK = 1 << 24


@dataclass(frozen=True)
class BundleInput:
    """An input of a graph, in the order of the Data nodes' indices."""

    kind: str  # weight, cache or input
    name: str  # the weight's in the safetensors, the cache's or the input's own
    shape: tuple[int, ...]  # as the graph reads it
    dtype: str
    by_reference: bool  # whether the graph writes it


@dataclass(frozen=True)
class BundleStep:
    """One bucket's graph."""

    bucket: Bucket
    inputs: tuple[BundleInput, ...]
    outputs: tuple[int, ...]  # which of the graph's outputs are the step's, in the step's order

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> BundleStep:
        inputs = tuple(BundleInput(**{**item, "shape": tuple(item["shape"])}) for item in raw["inputs"])
        return BundleStep(Bucket(**raw["bucket"]), inputs, tuple(raw["outputs"]))


@dataclass(frozen=True)
class Bundle:
    """A bundle that `read_bundle` has checked."""

    directory: Path
    manifest: dict[str, Any]  # the content of manifest.json
    steps: dict[Bucket, BundleStep]

    def serialized(self, bucket: Bucket) -> bytes:
        """The bucket's ge.proto.ModelDef."""
        return (self.directory / f"{bucket}.pb").read_bytes()

    def options(self, bucket: Bucket) -> dict[str, str]:
        """torchair's compile options for the bucket's graph."""
        options: dict[str, str] = json.loads((self.directory / f"{bucket}.options.json").read_text(encoding="utf-8"))
        return options

    def graph(self, bucket: Bucket) -> GeGraph:
        """The bucket's graph as plain data. Raises UserError if it is not one."""
        try:
            return read_model(self.serialized(bucket))
        except GeGraphError as error:
            raise UserError(f"{self.directory}/{bucket}.pb holds no GE graph ({error}). Export it again.") from None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by name, one after the other."""
        from safetensors import safe_open

        for path in sorted(self.directory.glob("*.safetensors")):
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    yield name, file.get_tensor(name)


def read_bundle(directory: Path) -> Bundle:
    """Check a bundle's format and every file's hash. Raises UserError naming the file and what is wrong with it."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); an exported bundle has it.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Copy the bundle again, or export it again.") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path}: the bundle's format is {found!r}, and this version of graph-gemma reads format {FORMAT}. Export "
            "it again with this version, or use the version that it names under versions."
        )
    try:
        files: dict[str, str] = dict(manifest["files"])
        steps = [BundleStep.from_json(raw) for raw in manifest["steps"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a bundle's manifest ({error!r}). Export the bundle again.") from None
    for name, expected in files.items():
        if Path(name).name != name:
            raise UserError(f"{path}: file {name!r} is not in the bundle's directory. Export the bundle again.")
        try:
            digest = file_digest(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name} cannot be read ({error.strerror}). Copy the bundle again.") from None
        if digest != expected:
            raise UserError(
                f"{directory / name} is not the file that was exported: its SHA-256 is {digest[:12]}…, the manifest "
                f"says {str(expected)[:12]}…. Copy the bundle again."
            )
    needed = {DESCRIPTOR, *(f"{step.bucket}{end}" for step in steps for end in (".pb", ".options.json"))}
    if needed - files.keys() or not any(name.endswith(".safetensors") for name in files):
        missing = sorted(needed - files.keys()) or ["model.safetensors"]
        raise UserError(f"{path} does not list {missing[0]}, which the bundle needs. Export the bundle again.")
    return Bundle(directory, manifest, {step.bucket: step for step in steps})


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_json(header: dict[str, Any], steps: Sequence[BundleStep], directory: Path) -> bytes:
    """The manifest of the files that lie in `directory`."""
    files = {path.name: file_digest(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    content = {"format": FORMAT, **header, "steps": [step.to_json() for step in steps], "files": files}
    return (json.dumps(content, indent=1) + "\n").encode()


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that a manifest names. Raises UserError."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"{MANIFEST}: {name!r} is no dtype. Export the bundle again.")
    return dtype
