"""Inductor: torch's own compiler, for CPUs and CUDA GPUs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.native import NativeBuildError, load_kernels
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.passes.cpu.native_int8_linear import NativeInt8Linear
from graph_gemma.passes.cpu.onednn_linear import OneDNNLinear
from graph_gemma.passes.cpu.skinny_linear import SkinnyLinear
from graph_gemma.passes.cpu.tiled_linear import TiledLinear
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.runners.backends.base import StepFunction
from graph_gemma.runners.cache import FileStore
from graph_gemma.runners.cache.store import unwritable

_SMALLEST_ROOM = 1 << 20  # bytes; with less a disk is full


class InductorBackend:
    """Canonical ops are traced into aten and fused with their neighbours; kernels are compiled C++ or Triton.

    cache_dir: where compiled kernels are kept, see FileStore; buckets that need the same kernel share it.
    """

    name: ClassVar[str] = "inductor"
    leaves_artifacts: ClassVar[bool] = True

    def __init__(self, device: torch.device, cache_dir: Path) -> None:
        self.device = device
        if device.type == "cpu" and cpp_compiler() is None:
            raise UserError(
                "backend=inductor: no C++ compiler that works was found (tried the environment variable CXX and g++). "
                "Inductor compiles kernels with it. Install g++, or take backend=eager, which needs none."
            )
        self._store = FileStore(cache_dir)
        kinds = json.dumps([torch.__version__, self.fingerprint()], sort_keys=True)
        digest = hashlib.sha256(kinds.encode()).hexdigest()[:16]
        self._kernels, self._headers = f"inductor-{digest}/", f"headers-{digest}/"

    def fingerprint(self) -> dict[str, Any]:
        if self.device.type == "cuda":
            return {"device": torch.cuda.get_device_name(self.device), "cuda": torch.version.cuda}
        return {
            "device": "cpu",
            "instructions": sorted(k for k, v in torch.cpu.get_capabilities().items() if v is True),
            "threads": torch.get_num_threads(),
            "compiler": cpp_compiler(),
        }

    def kernel_passes(self, dtype: torch.dtype, scheme: Scheme | None = None) -> tuple[Pass, ...]:
        if self.device.type != "cpu":
            return ()
        many: tuple[Pass, ...] = (OneDNNLinear(),) if ops.onednn_supports(dtype) else ()
        if dtype == torch.float32 and scheme is None:
            return many
        # oneDNN's products do not give the float32 that ranks sum.
        if not many or (scheme is not None and scheme.exact_sums):
            many = (*many, TiledLinear())
        version = cpp_compiler()
        assert version is not None
        try:
            self._store.fetch("linear-")
            load_kernels(self._store.workspace, _compiler_command(), version)
            self._store.keep("linear-")
        except NativeBuildError as error:
            warnings.warn(f"linear layers run on torch's own kernels, which are slower here: {error}", stacklevel=2)
            return many
        few = () if dtype == torch.float32 else (SkinnyLinear(),)
        capabilities = torch.cpu.get_capabilities()
        int_mm = bool(capabilities.get("amx_int8") or capabilities.get("avx512_vnni"))
        int8 = (NativeInt8Linear(int_mm),)
        return (*few, *many, *(int8 if scheme else ()))

    def compile(self, graph: ModelGraph, arguments: Sequence[Tensor], artifact: Path | None) -> StepFunction:
        from torch._inductor import standalone_compile

        with self._inductor(compiles=True), torch.no_grad():
            try:
                compiled = standalone_compile(
                    graph.module,
                    list(arguments),
                    dynamic_shapes="from_example_inputs",
                    # Sums that are rounded to 16 bit are rounded inside a fused kernel, too, as in the graph.
                    options={"config_patches": {"emulate_precision_casts": True}},
                )
            except Exception as error:
                workspace = self._store.workspace
                if shutil.disk_usage(workspace).free < _SMALLEST_ROOM:
                    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    raise UserError(unwritable(workspace, full)) from error
                raise
            if artifact is not None:
                compiled.save(path=str(artifact), format="binary")
                for place in (self._kernels, self._headers):
                    self._store.keep(place, _is_kernel)
        return compiled

    def load(self, artifact: Path) -> StepFunction | None:
        from torch._inductor import CompiledArtifact

        with self._inductor(compiles=False), torch.no_grad():
            return CompiledArtifact.load(path=str(artifact), format="binary")

    @contextlib.contextmanager
    def _inductor(self, compiles: bool) -> Iterator[None]:
        """Let Inductor work in this process's workspace, where the kernels are that were kept.

        That goes for its precompiled headers, too, which it would look for at a place that others can foresee. Whether
        it uses them is part of a kernel's key, so loading must find the same setting as compiling; but what is only
        loaded needs none, and they are large.
        """
        from torch._inductor import codecache
        from torch._inductor import config as inductor_config
        from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

        for place in (self._kernels, self._headers) if compiles else (self._kernels,):
            self._store.fetch(place)
        kernels, headers = (self._store.workspace / place for place in (self._kernels, self._headers))
        kernels.mkdir(parents=True, exist_ok=True)
        places: dict[str, Any] = {"_HEADER_DIR": str(headers), "_HEADER_LOCK_DIR": str(headers / "locks")}
        if not compiles:
            places["_precompile_header"] = lambda header, *_, **__: _plain_header(header, headers)
        movable = all(hasattr(codecache, name) for name in places)
        with contextlib.ExitStack() as stack:
            stack.enter_context(temporary_cache_dir(str(kernels)))
            stack.enter_context(inductor_config.patch(cpp_cache_precompile_headers=movable))
            if movable:
                stack.enter_context(mock.patch.multiple(codecache, **places))
            yield


def _plain_header(header: str, directory: Path) -> str:
    """A header that includes `header`, for a kernel that is missing although what calls it was kept."""
    path = directory / f"{Path(header).stem}.h"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#include <{header}>\n")
    return str(path)


def _is_kernel(path: Path) -> bool:
    """Whether Inductor made the file for the compiler or the loader; the rest is in the artifact, or is remade."""
    return path.suffix in (".so", ".gch", ".h", ".cubin", ".hsaco", ".json")


def cpp_compiler() -> str | None:
    """First line of `--version` of the C++ compiler that Inductor will call, or None if there is none."""
    return _version(_compiler_command())


def _compiler_command() -> str:
    return os.environ.get("CXX", "g++")


@cache
def _version(command: str) -> str | None:
    """First line of what `command --version` prints; asked once, as every bucket's cache key contains it."""
    try:
        result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.splitlines()[0] if result.stdout else command
