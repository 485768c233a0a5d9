"""Load torch_npu for a chip, over the CANN stand-in where CANN is absent."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.chips.registry import CHIPS
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.standin.allocator_keys import separate_keys
from graph_gemma.runners.backends.ascend.standin.build import build
from graph_gemma.runners.backends.ascend.standin.extra import INSTALL
from graph_gemma.runners.backends.ascend.standin.symbols import NeededSymbols, needed_symbols

BANNER = "CANN stand-in: graphs run in the GE interpreter on the CPU; no NPU is used"
SUPPORTED_VERSIONS = ("2.11", "2.13")

# Without these no graph is executed; libatb and the rest of CANN's libraries belong to optional packages.
CANN_LIBRARIES = ("libascendcl.so", "libge_runner.so", "libgraph.so", "libhccl.so")
CANN_SCRIPTS = (
    Path("/usr/local/Ascend/ascend-toolkit/set_env.sh"),
    Path("/usr/local/Ascend/cann/set_env.sh"),
)


@dataclass
class _State:
    """What torch_npu was loaded for, which it can be once in a process."""

    soc: Chip | None = None  # None: it is not loaded yet
    standin: bool = False


_STATE = _State()


def load(soc: Chip, cache_dir: Path) -> bool:
    """Import torch_npu and torchair for `soc`; true: over the stand-in, false: over CANN.

    cache_dir: where the stand-in's libraries are kept. A second call with the same `soc` changes nothing.

    Raises UserError: torch_npu missing, of a version that was not tried or without a module that it needs, not Linux,
    no compiler, CANN half installed, a device that is another chip, or a second SoC in one process.
    """
    if _STATE.soc is not None:
        if _STATE.soc != soc:
            raise UserError(
                f"soc={soc.name}: this process has already loaded torch_npu for {_STATE.soc.name}, and torch_npu "
                "keeps the chip's name for the life of a process. Use one process per soc."
            )
        return _STATE.standin
    check_installation()
    standin = not cann_is_present()
    if "torch_npu" not in sys.modules:
        import torch

        separate_keys(cache_dir, torch.version.cuda)
    if standin:
        _preload(soc, cache_dir)
    with _without_advice() if standin else contextlib.nullcontext():
        _import_torch_npu()

    if not standin:
        check_chip(soc, device_name())

    from graph_gemma.runners.backends.ascend.register import register_converters

    register_converters()
    if standin:
        from graph_gemma.runners.backends.ascend.standin.seam import replace_seam

        replace_seam(soc)
    _STATE.soc, _STATE.standin = soc, standin
    return standin


def is_standin() -> bool:
    """Whether torch_npu was loaded in this process over the stand-in."""
    return _STATE.standin


def loaded_soc() -> Chip | None:
    """The SoC that `load` was called with; None before it."""
    return _STATE.soc


def device_name() -> str:
    """What CANN calls the chip of the first device; torch_npu must be loaded."""
    import torch_npu

    return str(torch_npu.npu.get_device_name(0))


def check_chip(soc: Chip, found: str) -> None:
    """Raise UserError if the device is another chip than `soc`. found: its name.

    A chip that is in no table but of `soc`'s family, such as Ascend910B2, runs the same ops; only its rates differ.
    """
    known = next((candidate for candidate in CHIPS.values() if candidate.cann_name == found), None)
    if known == soc or (known is None and found[:-1] == soc.cann_name[:-1]):
        return
    way_out = f"Set soc={known.name}." if known else f"The chips are {', '.join(CHIPS)}."
    raise UserError(
        f"soc={soc.name} is the {soc.cann_name}, and the device of this machine is a {found}: graphs for one may be "
        f"illegal on the other. {way_out}"
    )


def check_installation() -> None:
    """Raise UserError if torch_npu cannot be loaded here: not Linux, missing, or of an untried version."""
    if platform.system() != "Linux":
        raise UserError(
            f"The Ascend backend needs Linux (this is {platform.system()}): torch_npu is published for no other "
            "system. Use backend=inductor or backend=eager, or a Linux container."
        )
    missing = [name for name in ("torch_npu", "google.protobuf") if not _is_installed(name)]
    if missing:
        raise UserError(
            f"{' is not installed, '.join(missing)} is not installed; the Ascend backend lowers graphs with it. "
            f"Install the extra: {INSTALL}"
        )
    version = importlib.metadata.version("torch_npu")
    torch_version = importlib.metadata.version("torch").split("+")[0]
    if not version.startswith(tuple(f"{supported}." for supported in SUPPORTED_VERSIONS)):
        raise UserError(
            f"torch_npu {version} is installed; this version of graph-gemma supports "
            f"{', '.join(SUPPORTED_VERSIONS)}. Install the extra again: {INSTALL}"
        )
    if torch_version.split(".")[:2] != version.split(".")[:2]:
        raise UserError(
            f"torch {torch_version} and torch_npu {version} are installed; their versions must match. Install the "
            f"extra again: {INSTALL}"
        )


def cann_is_present() -> bool:
    """Whether CANN's libraries can be loaded. Raises UserError if only some can, or if it is installed but unset."""
    failures = {}
    for name in CANN_LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            failures[name] = str(error)
    if not failures:
        return True
    if len(failures) < len(CANN_LIBRARIES):
        raise UserError(
            f"CANN is half installed: {', '.join(failures)} cannot be loaded ({next(iter(failures.values()))}) while "
            "CANN's other libraries can. Source CANN's set_env.sh and check that the driver is installed; or take "
            "CANN off the library path (LD_LIBRARY_PATH) to run on the stand-in."
        )
    scripts = [str(path) for path in CANN_SCRIPTS if path.is_file()]
    if scripts:
        raise UserError(
            f"CANN is installed but its libraries cannot be loaded ({next(iter(failures.values()))}). "
            f"Run this first: source {scripts[0]}"
        )
    return False


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep torch_npu from printing that CANN's variables are not set: there is no CANN."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if "ASCEND_HOME_PATH" not in line:
                print(line)


def _is_installed(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name) is not None
    return False


def _import_torch_npu() -> None:
    try:
        import torch_npu  # noqa: F401
        from torch_npu.dynamo import torchair  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"torch_npu cannot be imported: it needs the module {error.name or error}, which is not installed, and its "
            "metadata does not name all that it needs. Install the extra, which does: "
            f"{INSTALL}"
        ) from error


def _preload(soc: Chip, cache_dir: Path) -> None:
    import torch

    if "torch_npu" in sys.modules:
        raise UserError(
            "torch_npu was imported before the CANN stand-in was loaded. Let "
            "graph_gemma.runners.backends.ascend.standin.load import it, and import nothing of torch_npu before."
        )
    spec = importlib.util.find_spec("torch_npu")
    assert spec is not None
    assert spec.submodule_search_locations
    torch_npu_dir = Path(next(iter(spec.submodule_search_locations)))
    torch_dir = Path(torch.__file__).parent

    def read_symbols() -> NeededSymbols:
        return needed_symbols(torch_npu_dir, torch_dir)

    version = importlib.metadata.version("torch_npu")
    for path in build(cache_dir, version, soc.cann_name, read_symbols):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
