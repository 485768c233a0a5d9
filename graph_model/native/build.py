"""Build the C++ kernels into a cache directory and load them into torch."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from graph_gemma.graph_model import ops

SOURCES = tuple(Path(__file__).with_name(name) for name in ("linear.cpp", "int8_linear.cpp", "int8_weight_linear.cpp"))
HEADERS = tuple(Path(__file__).with_name(name) for name in ("product.h", "byte_product.h"))
_OPTIONS = ("-O3", "-fno-tree-reassoc", "-std=c++20", "-fPIC", "-shared", "-march=native")


class NativeBuildError(RuntimeError):
    """The kernels cannot be compiled here; the message says why."""


def load_kernels(cache_dir: Path, compiler: str, compiler_version: str) -> Path | None:
    """Give the CPU kernels of this package to torch, once per process, building them if they are not there.

    compiler: the command. A library's name tells source, compiler, torch and the CPU's instructions, so that a cache
    directory that several machines share holds one library for each kind. Several processes may build at once: each
    writes a file of its own, and the last to finish renames it into place. Returns the library's path, None if torch
    has the kernels already. Raises NativeBuildError.
    """
    if torch._C._dispatch_has_kernel_for_dispatch_key(ops.skinny_linear.name(), "CPU"):
        return None
    texts = [path.read_text(encoding="utf-8") for path in (*HEADERS, *SOURCES)]
    ingredients = [*texts, compiler_version, torch.__version__, *_OPTIONS, *_cpu()]
    key = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:24]
    library = cache_dir / f"linear-{key}.so"
    if not library.is_file():
        _build(library, compiler)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise NativeBuildError(f"{library} cannot be loaded ({error})") from error
    return library


def _build(library: Path, compiler: str) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    torch_dir = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(prefix=".building-", dir=library.parent) as scratch:
        output = Path(scratch) / library.name
        link = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-ltorch_cpu"]
        command = [
            *shlex.split(compiler),
            *_OPTIONS,
            f"-I{torch_dir / 'include'}",
            *map(str, SOURCES),
            "-o",
            str(output),
        ]
        try:
            result = subprocess.run(
                [*command, f"-L{torch_dir / 'lib'}", *link], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise NativeBuildError(f"{compiler} cannot be run ({error})") from error
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if "error" in line] or [result.stderr]
            raise NativeBuildError(f"{compiler} rejects the kernels: {errors[0].strip()[:300]}")
        os.replace(output, library)


def _cpu() -> list[str]:
    """The lines of /proc/cpuinfo that decide what -march=native means."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [platform.machine(), platform.processor(), platform.platform()]
    first = [line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part")]
    return [platform.machine(), *sorted(set(first))]
