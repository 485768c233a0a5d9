"""Which libraries and symbols of CANN the installed torch_npu needs, read from its shared objects."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.standin.extra import INSTALL

# Functions of CANN's runtime that torch_npu looks up by name: they are not undefined symbols but strings. The operator
# library's (aclnn...) are left out: without them an eager op fails, as it must on the stand-in.
_LOOKED_UP = re.compile(rb"(?<![^\0])(?:acl(?!nn)[A-Za-z][A-Za-z0-9]+|Hccl[A-Za-z0-9]+)(?=\0)")
_OPERATOR_LIBRARY = re.compile(r"^acl(Create|Destroy|Get|Set)\w*(Tensor|Scalar|Array|View|Executor|OpExecutor)")


@dataclass(frozen=True)
class NeededSymbols:
    """What the dynamic linker, and torch_npu itself while running, would look for in CANN; sorted."""

    libraries: tuple[str, ...]  # SONAMEs that neither the system, torch nor torch_npu provides
    functions: tuple[str, ...]
    data: tuple[str, ...]  # C++ virtual tables and type information


def needed_symbols(torch_npu_dir: Path, torch_dir: Path) -> NeededSymbols:
    """Read every shared object under `torch_npu_dir` (the package's directory); torch must be imported already."""
    undefined: set[str] = set()
    defined: set[str] = set()
    libraries: set[str] = set()
    looked_up: set[str] = set()
    shared_objects = sorted(torch_npu_dir.rglob("*.so"))
    for path in shared_objects:
        elf = _read_elf(path)
        undefined |= elf.undefined
        defined |= elf.defined
        libraries |= elf.needed
        looked_up |= elf.looked_up
    libraries -= {path.name for path in shared_objects}

    present: list[ctypes.CDLL] = [ctypes.pythonapi]
    missing = []
    for name in sorted(libraries):
        library = _open_library(name, torch_dir / "lib")
        if library is None:
            missing.append(name)
        else:
            present.append(library)
    linked = [name for name in undefined - defined if not _is_provided(name, present)]
    symbols = sorted({*linked, *(name for name in looked_up if not _OPERATOR_LIBRARY.match(name))})
    return NeededSymbols(
        libraries=tuple(missing),
        functions=tuple(name for name in symbols if not name.startswith("_ZT")),
        data=tuple(name for name in symbols if name.startswith("_ZT")),
    )


@dataclass(frozen=True)
class _Elf:
    needed: frozenset[str]
    undefined: frozenset[str]
    defined: frozenset[str]
    looked_up: frozenset[str]


def _read_elf(path: Path) -> _Elf:
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.dynamic import DynamicSection
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection
    except ImportError:
        raise UserError(
            "The package pyelftools is not installed; the CANN stand-in reads torch_npu's shared objects with it. "
            f"Install the Ascend extra: {INSTALL}"
        ) from None
    needed: set[str] = set()
    undefined: set[str] = set()
    defined: set[str] = set()
    looked_up: set[str] = set()
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            dynamic = elf.get_section_by_name(".dynamic")
            symbols = elf.get_section_by_name(".dynsym")
            if not isinstance(dynamic, DynamicSection) or not isinstance(symbols, SymbolTableSection):
                return _Elf(frozenset(), frozenset(), frozenset(), frozenset())
            for section in elf.iter_sections():
                if section.name.startswith(".rodata"):
                    looked_up.update(name.decode() for name in _LOOKED_UP.findall(section.data()))
            needed.update(vars(tag)["needed"] for tag in dynamic.iter_tags("DT_NEEDED"))
            for symbol in symbols.iter_symbols():
                if symbol["st_shndx"] != "SHN_UNDEF":
                    defined.add(symbol.name)
                elif symbol.name and symbol["st_info"]["bind"] != "STB_WEAK":
                    undefined.add(symbol.name)
    except ELFError as error:
        raise UserError(f"{path} is not a readable shared object ({error}). Install torch_npu again.") from None
    return _Elf(frozenset(needed), frozenset(undefined), frozenset(defined), frozenset(looked_up))


def _open_library(name: str, torch_lib: Path) -> ctypes.CDLL | None:
    """The library as the dynamic linker finds it, or torch's own; None if there is neither."""
    for candidate in (name, str(torch_lib / name)):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    return None


def _is_provided(name: str, libraries: Iterable[ctypes.CDLL]) -> bool:
    return any(hasattr(library, name) for library in libraries)
