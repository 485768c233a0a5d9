"""Build the stand-in's libraries with the C compiler, once, and keep them in a cache directory."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.standin import source
from graph_gemma.runners.backends.ascend.standin.symbols import NeededSymbols
from graph_gemma.runners.cache import FileStore

MAIN_LIBRARY = "libgraph_model_cann_standin.so"
_MANIFEST = "libraries.txt"


def build(
    cache_dir: Path, torch_npu_version: str, soc_name: str, read_symbols: Callable[[], NeededSymbols]
) -> tuple[Path, ...]:
    """The libraries' paths in the order in which they are to be loaded; builds them if they are not there.

    cache_dir: where they are kept, see FileStore. Raises UserError without a C compiler.
    """
    store = FileStore(cache_dir)
    name = f"cann-standin-{torch_npu_version}-{soc_name}-{platform.machine()}-{_source_hash()}/"
    target = store.workspace / name
    store.fetch(name)
    libraries = _libraries(target)
    if not libraries:
        target.mkdir(parents=True, exist_ok=True)
        _build_into(target, soc_name, read_symbols())
        store.keep(name)
        libraries = _libraries(target)
    return libraries


def _libraries(target: Path) -> tuple[Path, ...]:
    """The libraries of the manifest; none where one is missing."""
    manifest = target / _MANIFEST
    names = manifest.read_text(encoding="utf-8").split() if manifest.is_file() else []
    paths = tuple(target / name for name in names)
    return paths if all(path.is_file() for path in paths) else ()


def _source_hash() -> str:
    """A digest of what decides the generated sources and how they are compiled."""
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
