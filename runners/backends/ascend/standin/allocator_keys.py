"""Let torch_npu be loaded by a CUDA build of torch: both register allocator settings of the same names.

c10 keeps the names in one set and refuses a name that is in it, which aborts the process while torch_npu is loaded. A
small library, loaded before torch_npu, answers torch_npu's calls for that set with a set of its own. CUDA's settings
stay as they are; what torch_npu's settings mean is still asked of torch_npu.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.cache import FileStore

# The symbol is looked up by name, so the declaration need only have the name and the type that c10 has. A caller of
# another library gets what it would have got: c10's own.
SOURCE = r"""
#include <dlfcn.h>
#include <cstring>
#include <string>
#include <unordered_set>

namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig {
  __attribute__((visibility("default"))) static std::unordered_set<std::string>& getMutableKeys();
};

std::unordered_set<std::string>& AcceleratorAllocatorConfig::getMutableKeys() {
  static std::unordered_set<std::string> own;
  Dl_info caller{};
  if (dladdr(__builtin_return_address(0), &caller) && caller.dli_fname) {
    const char* slash = strrchr(caller.dli_fname, '/');
    if (strstr(slash ? slash : caller.dli_fname, "torch_npu")) return own;
  }
  using Get = std::unordered_set<std::string>& (*)();
  static const Get of_c10 = [] {
    void* c10 = dlopen("libc10.so", RTLD_NOW | RTLD_NOLOAD);
    const char* name = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11Ev";
    return reinterpret_cast<Get>(c10 ? dlsym(c10, name) : nullptr);
  }();
  return of_c10 ? of_c10() : own;
}
}
"""
_OPTIONS = ("-std=c++17", "-O1", "-fPIC", "-shared")


def separate_keys(cache_dir: Path, cuda: str | None) -> None:
    """Load the library where torch is a CUDA build (`cuda`: torch.version.cuda); torch_npu must not be loaded yet.

    Raises UserError where there is no C++ compiler to build it with.
    """
    if cuda is not None:
        ctypes.CDLL(str(build_library(cache_dir, cuda)), mode=ctypes.RTLD_GLOBAL)


def build_library(cache_dir: Path, cuda: str) -> Path:
    """The library's path in the process's workspace; it is built once and kept in `cache_dir`, see FileStore."""
    store = FileStore(cache_dir)
    digest = hashlib.sha256("\0".join([SOURCE, *_OPTIONS, platform.machine()]).encode()).hexdigest()[:16]
    name = f"allocator-keys-{digest}.so"
    store.fetch(name)
    library = store.workspace / name
    if library.is_file():
        return library
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    source = library.with_suffix(".cpp")
    source.write_text(SOURCE, encoding="utf-8")
    problem = "no C++ compiler was found (looked for c++, g++, clang++ on PATH)"
    if compiler is not None:
        command = [compiler, *_OPTIONS, "-o", str(library), str(source), "-ldl"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            store.keep(name)
            return library
        problem = f"{compiler} could not build it: {result.stderr.strip()[:300]}"
    raise UserError(
        f"torch is a build for CUDA {cuda}, and torch_npu would end the process: both register allocator settings of "
        f"the same name. A small library that is built on first use keeps them apart, but {problem}. Install one "
        "(apt-get install g++), or install the CPU build of the same torch, with the command of PyTorch's install page."
    )
