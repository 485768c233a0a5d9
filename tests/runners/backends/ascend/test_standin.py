"""Building and loading the CANN stand-in: races, cache, and errors that say what to do."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend import register
from graph_gemma.runners.backends.ascend.standin import allocator_keys, seam
from graph_gemma.runners.backends.ascend.standin import build as building
from graph_gemma.runners.backends.ascend.standin import loader as loading
from graph_gemma.runners.backends.ascend.standin.symbols import NeededSymbols
from graph_gemma.runners.backends.inductor import InductorBackend

SYMBOLS = NeededSymbols(
    libraries=("libgraphmodeltest_a.so", "libgraphmodeltest_b.so"),
    functions=("aclrtGetSocName", "aclrtMalloc", "graph_model_test_stub", "HcclAllReduce", "aclopCompileAndExecute"),
    data=("_ZTVtest",),
)
needs_compiler = pytest.mark.skipif(
    platform.system() != "Linux" or not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)


@needs_compiler
def test_the_built_library_answers_and_computes_nothing(tmp_path: Path) -> None:
    paths = building.build(tmp_path, "0.0", "Ascend910B3", lambda: SYMBOLS)
    assert [path.name for path in paths] == [building.MAIN_LIBRARY, *SYMBOLS.libraries]
    main, other = ctypes.CDLL(str(paths[0])), ctypes.CDLL(str(paths[1]))
    main.aclrtGetSocName.restype = ctypes.c_char_p
    assert main.aclrtGetSocName() == b"Ascend910B3"
    assert other.graph_model_test_stub() == 0  # a look-up in any of the libraries reaches the main one
    assert main.HcclAllReduce() != 0
    assert main.aclopCompileAndExecute() != 0
    pointer = ctypes.c_void_p()
    assert main.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(100), 0) == 0
    assert pointer.value
    assert pointer.value % 64 == 0
    source = b"x" * 100
    assert main.aclrtMemcpy(pointer, ctypes.c_size_t(100), source, ctypes.c_size_t(100), 0) == 0
    assert ctypes.string_at(pointer.value, 100) == source
    assert main.aclrtMemcpy(pointer, ctypes.c_size_t(99), source, ctypes.c_size_t(100), 0) != 0
    assert main.aclrtFree(pointer) == 0


@needs_compiler
def test_a_second_build_reads_the_cache(tmp_path: Path) -> None:
    first = building.build(tmp_path, "0.0", "Ascend910B3", lambda: SYMBOLS)

    def unexpected() -> NeededSymbols:
        raise AssertionError("built again")

    assert building.build(tmp_path, "0.0", "Ascend910B3", unexpected) == first
    other = building.build(tmp_path, "0.0", "Ascend310P3", lambda: SYMBOLS)
    assert other[0].parent != first[0].parent
    assert building.build(tmp_path, "0.1", "Ascend910B3", lambda: SYMBOLS)[0].parent != first[0].parent


@needs_compiler
def test_processes_that_start_together_share_one_build(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from graph_gemma.runners.backends.ascend.standin import build; "
        "from graph_gemma.runners.backends.ascend.standin.symbols import NeededSymbols as N; "
        "print(build.build(Path(sys.argv[1]), '0.0', 'Ascend910B3', lambda: N(('liba_t.so',), ('f',), ()))[0])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({Path(output).name for output in outputs}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["files"]  # no half-built directory is left


def test_no_compiler_is_a_user_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"No C compiler .* apt-get install gcc"):
        building.build(tmp_path / "cache", "0.0", "Ascend910B3", lambda: SYMBOLS)
    assert not (tmp_path / "cache" / "files").exists()


@needs_compiler
def test_a_failing_compiler_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not build the CANN stand-in"):
        building.build(tmp_path, "0.0", "Ascend910B3", lambda: NeededSymbols((), ("not an identifier",), ()))
    assert not (tmp_path / "files").exists()


def test_an_unwritable_cache_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        building.build(tmp_path / "file" / "cache", "0.0", "Ascend910B3", lambda: SYMBOLS)


@pytest.mark.parametrize(
    "load",
    [
        lambda cache: building.build(cache, "0.0", "Ascend910B3", lambda: SYMBOLS),
        lambda cache: allocator_keys.separate_keys(cache, "13.0"),
        lambda cache: InductorBackend(torch.device("cpu"), cache),
    ],
    ids=["stand-in", "allocator keys", "kernels"],
)
def test_no_library_comes_from_where_others_can_write(load: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "cache" / "files").mkdir(parents=True)
    (tmp_path / "cache").chmod(0o755)
    (tmp_path / "cache" / "files").chmod(0o777)
    with pytest.raises(UserError, match=r"cache/files is writable by others"):
        load(tmp_path / "cache")


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(loading, "_is_installed", lambda name: name.split(".")[0] in {*versions, "google"})
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions[name])


def test_a_missing_torch_npu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(UserError, match=r"torch_npu is not installed.*pip install 'graph-gemma\[ascend\]'"):
        loading.check_installation()


def test_untried_and_unmatched_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.11", "2.13"):
        installed(monkeypatch, torch_npu=f"{version}.0", torch=f"{version}.0+cpu")
        loading.check_installation()
    installed(monkeypatch, torch_npu="2.1.0", torch="2.1.0")
    with pytest.raises(UserError, match=r"torch_npu 2\.1\.0 is installed.*supports 2\.11, 2\.13"):
        loading.check_installation()
    installed(monkeypatch, torch_npu="2.13.0", torch="2.12.0+cpu")
    with pytest.raises(UserError, match="must match"):
        loading.check_installation()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(UserError, match=r"needs Linux \(this is Darwin\)"):
        loading.check_installation()


def loadable(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """Let CANN's libraries be these; one that is named by its path is ours, and is opened."""
    really_open = ctypes.CDLL

    def open_library(name: str, mode: int = ctypes.DEFAULT_MODE) -> object:
        if "/" in name:
            return really_open(name, mode=mode)
        if name in names:
            return object()
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", open_library)


def test_cann_is_present_absent_or_half_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "CANN_SCRIPTS", (tmp_path / "set_env.sh",))
    loadable(monkeypatch, loading.CANN_LIBRARIES)
    assert loading.cann_is_present()
    loadable(monkeypatch, ())
    assert not loading.cann_is_present()
    loadable(monkeypatch, ("libascendcl.so",))
    with pytest.raises(UserError, match=r"half installed: libge_runner\.so, libgraph\.so, libhccl\.so"):
        loading.cann_is_present()
    loadable(monkeypatch, ())
    (tmp_path / "set_env.sh").write_text("")
    with pytest.raises(UserError, match=r"source .*set_env\.sh"):
        loading.cann_is_present()


def test_advice_on_cann_is_not_printed_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with loading._without_advice():
        print("Warning: ASCEND_HOME_PATH environment variable is not set.")
        print("Warning: something else.")
    assert capsys.readouterr().out == "Warning: something else.\n"


@pytest.fixture
def over_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    """CANN and torch_npu, as far as `load` looks at them; whatever the stand-in would do fails."""

    def unexpected(*arguments: object) -> None:
        raise AssertionError("the stand-in was used")

    monkeypatch.setattr(loading, "_STATE", loading._State())
    monkeypatch.setattr(loading, "check_installation", lambda: None)
    loadable(monkeypatch, loading.CANN_LIBRARIES)
    for name in ("torch_npu", "torch_npu.dynamo", "torch_npu.dynamo.torchair"):
        module = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torch_npu.dynamo"].torchair = sys.modules["torch_npu.dynamo.torchair"]  # type: ignore[attr-defined]
    npu = types.SimpleNamespace(get_device_name=lambda index: "Ascend910B4")
    sys.modules["torch_npu"].npu = npu  # type: ignore[attr-defined]
    monkeypatch.setattr(register, "register_converters", lambda: None)
    for module, name in ((loading, "_preload"), (loading, "build"), (building, "build"), (seam, "replace_seam")):
        monkeypatch.setattr(module, name, unexpected)


@pytest.mark.usefixtures("over_cann")
def test_over_cann_nothing_is_built_or_replaced(tmp_path: Path) -> None:
    soc = find_soc("atlas_800i_a2_910b4")
    assert loading.load(soc, tmp_path / "cache") is False
    assert not (tmp_path / "cache").exists()
    assert not loading.is_standin()
    assert loading.loaded_soc() == soc
    assert loading.load(soc, tmp_path / "cache") is False


@pytest.mark.usefixtures("over_cann")
def test_a_device_that_is_another_chip_is_refused(tmp_path: Path) -> None:
    message = r"soc=atlas_300i_duo is the Ascend310P3.*is a Ascend910B4.*Set soc=atlas_800i_a2_910b4\."
    with pytest.raises(UserError, match=message):
        loading.load(find_soc("atlas_300i_duo"), tmp_path)
    assert loading.loaded_soc() is None


@pytest.mark.usefixtures("over_cann")
@pytest.mark.parametrize("place", ["torch_npu", "torch_npu/dynamo/torchair"])
def test_a_module_that_torch_npu_lacks_is_named_with_the_extra(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch_npu", "torch_npu/dynamo", "torch_npu/dynamo/torchair"):
        monkeypatch.delitem(sys.modules, name.replace("/", "."))
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import graph_model_test_missing.part" if name == place else "")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"needs the module graph_model_test_missing, .* pip install 'graph-gemma\[ascend\]'"
    with pytest.raises(UserError, match=message):
        loading.load(find_soc("atlas_800i_a2_910b4"), tmp_path / "cache")
    assert loading.loaded_soc() is None


def test_chips_are_told_by_name_and_unknown_ones_by_family() -> None:
    loading.check_chip(find_soc("atlas_800i_a2"), "Ascend910B3")
    loading.check_chip(find_soc("atlas_800i_a2"), "Ascend910B2")
    for soc, found in (
        ("atlas_800i_a2", "Ascend910B4"),
        ("atlas_800i_a2", "Ascend910A"),
        ("atlas_300i_duo", "Ascend310"),
    ):
        with pytest.raises(UserError, match=f"is a {found}"):
            loading.check_chip(find_soc(soc), found)
    with pytest.raises(UserError, match="The chips are atlas_800i_a2, "):
        loading.check_chip(find_soc("atlas_800i_a2"), "Ascend910_9391")


def test_nothing_is_a_standin_before_it_is_loaded() -> None:
    script = (
        "from graph_gemma.runners.backends.ascend import standin; print(standin.is_standin(), standin.loaded_soc())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "None"]


@pytest.mark.ascend
def test_importing_torch_npu_first_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys, types; from pathlib import Path; from graph_gemma.graph_model.chips.registry import find_soc; "
        "from graph_gemma.runners.backends.ascend import standin; import torch; "
        "sys.modules['torch_npu'] = types.ModuleType('torch_npu'); "
        "from importlib.machinery import ModuleSpec; "
        "sys.modules['torch_npu'].__spec__ = ModuleSpec('torch_npu', None); "
        "standin.load(find_soc('atlas_800i_a2'), Path(sys.argv[1]))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "torch_npu was imported before the CANN stand-in" in result.stderr
