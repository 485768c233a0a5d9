"""Builds the stand-in's libraries once into a cache directory."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from graph_model.errors import UserError
from runners.backends.ascend.standin import source
from runners.backends.ascend.standin.symbols import NeededSymbols

MAIN_LIBRARY = "libgraph_model_cann_standin.so"
_MANIFEST = "libraries.txt"


def build(
    cache_dir: Path, torch_npu_version: str, soc_name: str, read_symbols: Callable[[], NeededSymbols]
) -> tuple[Path, ...]:
    """The libraries' paths in the order in which they are to be loaded; builds them if they are not there.

    Several processes may call this at once with the same `cache_dir`: each builds in a directory of its own and the
    first to finish renames its directory into place. Raises UserError without a C compiler.
    """
    target = cache_dir / f"cann-standin-{torch_npu_version}-{soc_name}-{platform.machine()}-{_source_hash()}"
    if not (target / _MANIFEST).is_file():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=cache_dir))
        except OSError as error:
            raise UserError(
                f"cache directory {cache_dir} cannot be written ({error}); the CANN stand-in is built there. "
                "Choose another cache directory."
            ) from None
        try:
            _build_into(scratch, soc_name, read_symbols())
            _publish(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    names = (target / _MANIFEST).read_text(encoding="utf-8").split()
    return tuple(target / name for name in names)


def _source_hash() -> str:
    """Changes when what is generated, or how it is compiled, changes."""
    digest = hashlib.sha256()
    for path in (Path(source.__file__), Path(__file__), Path(__file__).with_name("symbols.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build_into(directory: Path, soc_name: str, symbols: NeededSymbols) -> None:
    compiler = find_compiler()
    (directory / "answers.c").write_text(source.ANSWERS, encoding="utf-8")
    (directory / "stubs.c").write_text(source.stub_source(symbols), encoding="utf-8")
    shared = [compiler, "-shared", "-fPIC", "-O1", "-w"]
    options = [f'-DSOC_NAME="{soc_name}"', f"-Wl,-soname,{MAIN_LIBRARY}"]
    _run([*shared, *options, "-o", MAIN_LIBRARY, "answers.c", "stubs.c"], directory)
    # The others are empty: their names satisfy the loader, and a look-up in one of them reaches the main library.
    (directory / "empty.c").write_text("", encoding="utf-8")
    link = [f"-L{directory}", "-Wl,--no-as-needed", f"-l:{MAIN_LIBRARY}", "-Wl,-rpath,$ORIGIN"]
    for name in symbols.libraries:
        _run([*shared, f"-Wl,-soname,{name}", "-o", name, "empty.c", *link], directory)
    manifest = "\n".join([MAIN_LIBRARY, *symbols.libraries]) + "\n"
    (directory / _MANIFEST).write_text(manifest, encoding="utf-8")


def find_compiler() -> str:
    """The system's C compiler. Raises UserError if there is none."""
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            return path
    raise UserError(
        "No C compiler was found (looked for cc, gcc, clang on PATH). The CANN stand-in is a small C library built "
        "on first use; install one, for example with: apt-get install gcc libc6-dev."
    )


def _run(command: list[str], directory: Path) -> None:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(
            f"The C compiler could not build the CANN stand-in ({' '.join(command[:1])} ended with status "
            f"{result.returncode}): {result.stderr.strip()[:500]}. A compiler with the C library's headers is needed "
            "(on Debian and Ubuntu the packages gcc and libc6-dev)."
        )


def _publish(scratch: Path, target: Path) -> None:
    try:
        os.rename(scratch, target)
    except OSError:
        # Another process was first; what it built is equal.
        if not (target / _MANIFEST).is_file():
            raise
