"""The wheel: what users never call is not in it, nothing in it imports that, and commands that need it say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_architecture import ROOT, is_module, module_name, own_imports, top_level_imports, within

LEFT_OUT = (
    "graph_gemma.runners.demo.training",
    "graph_gemma.runners.benchmarking.peers",
    "graph_gemma.runners.verification",
)
# An editable install finds modules of the repository that the wheel has not.
RUN = """
import runpy, sys
sys.meta_path[:] = [each for each in sys.meta_path if "Editable" not in getattr(each, "__name__", "")]
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the repository, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    for package in ("graph_model", "passes", "conf", "runners"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, checkout)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=checkout, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_wheel_has_all_but_what_users_never_call(installed: Path) -> None:
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.suffix in (".py", ".yaml", ".cpp")}
    own = [p for package in ("graph_model", "passes", "conf", "runners") for p in (ROOT / package).rglob("*")]
    files = [path for path in own if path.suffix in (".py", ".yaml", ".cpp")]
    left_out = {path.relative_to(ROOT) for path in files if within(module_name(path), *LEFT_OUT)}
    assert found == {path.relative_to(ROOT) for path in files} - left_out
    assert all(is_module(package) for package in LEFT_OUT)
    assert left_out


def test_no_module_of_the_wheel_needs_what_is_left_out(installed: Path) -> None:
    """Commands that can do without import it inside a function, which first asks whether it is there."""
    for path in installed.rglob("*.py"):
        source = ROOT / path.relative_to(installed)
        assert not [name for name in top_level_imports(source) if within(name, *LEFT_OUT)], source
        if source.parent != ROOT / "runners":
            assert not [name for name in own_imports(source) if within(name, *LEFT_OUT)], source


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (
            ["graph_gemma.runners.benchmark", "peers=[transformers]"],
            "peers is [transformers], but what builds other engines",
        ),
        (["graph_gemma.runners.verify", "report_dir=report"], "verify: what checks the ops"),
    ],
)
def test_commands_say_what_needs_a_checkout(installed: Path, tmp_path: Path, arguments: list[str], what: str) -> None:
    result = run(installed, tmp_path, *arguments)
    expected = f"error: {what} is not installed with the package. Run the command from a checkout of the repository.\n"
    assert (result.returncode, result.stderr) == (2, expected)


@pytest.mark.slow
def test_a_benchmark_without_peers_runs_when_installed(installed: Path, tmp_path: Path) -> None:
    settings = ["backend=eager", f"cache_dir={tmp_path / 'cache'}", "lengths=[[8,4]]", "batch_sizes=[1]", "repeats=1"]
    result = run(installed, tmp_path, "graph_gemma.runners.benchmark", *settings, f"results_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "benchmark.csv").is_file()
