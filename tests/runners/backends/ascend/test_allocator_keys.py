"""The names of allocator settings: torch_npu gets a set of its own, every other library c10's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.standin import allocator_keys

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
CALLER = r"""
#include <string>
#include <unordered_set>
namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig { static std::unordered_set<std::string>& getMutableKeys(); };
}
extern "C" void* keys() { return &c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys(); }
"""
# Which set each of two libraries gets, after the library has been loaded; and c10's own.
PROGRAM = """
import ctypes, sys
from pathlib import Path
import torch
from graph_gemma.runners.backends.ascend.standin.allocator_keys import separate_keys
separate_keys(Path(sys.argv[1]), "13.0")
for name in sys.argv[2:]:
    keys = ctypes.CDLL(name).keys
    keys.restype = ctypes.c_void_p
    print(keys())
own = ctypes.CDLL("libc10.so")._ZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11Ev
own.restype = ctypes.c_void_p
print(own())
"""


@pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C++ compiler")
def test_torch_npu_alone_gets_a_set_of_its_own(tmp_path: Path) -> None:
    assert COMPILER is not None
    (tmp_path / "torch_npu").mkdir()  # a folder's name does not make a library torch_npu's
    (tmp_path / "caller.cpp").write_text(CALLER)
    libraries = [tmp_path / "libtorch_npu.so", tmp_path / "torch_npu" / "libother.so"]
    for library in libraries:
        command = [COMPILER, "-std=c++17", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "caller.cpp")]
        subprocess.run(command, check=True)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cache"), *map(str, libraries)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    npu, other, c10 = result.stdout.split()
    assert npu != c10
    assert other == c10


def test_a_cpu_build_needs_no_library(tmp_path: Path) -> None:
    allocator_keys.separate_keys(tmp_path / "cache", None)
    assert not (tmp_path / "cache").exists()


def test_no_compiler_says_what_would_happen_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"CUDA 13\.0, and torch_npu would end the process.*apt-get install g\+\+"):
        allocator_keys.separate_keys(tmp_path / "cache", "13.0")
