"""The wheel and the sdist: one name, graph_gemma, with all but what users never call, next to folders of any names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support.checkout import ROOT
from test_architecture import NAME, PACKAGES, is_module, module_name, own_imports, top_level_imports, within

LEFT_OUT = (
    "graph_gemma.runners.demo.training",
    "graph_gemma.runners.benchmarking.peers",
    "graph_gemma.runners.verification",
)
BUILD = "from setuptools.build_meta import *; build_wheel('..'); build_sdist('..')"
KINDS = (".py", ".yaml", ".cpp", ".h", ".json", ".safetensors", ".typed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of a copy of the repository."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__.py", "py.typed", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, checkout)
    subprocess.run([sys.executable, "-c", BUILD], cwd=checkout, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages folder of a new virtual environment with the wheel or the sdist, and else what this one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    (archive,) = built.glob(request.param)
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", str(archive)]
    subprocess.run([folder / "bin" / "python", *install], check=True, capture_output=True, env=environment())
    return packages


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of a user who has folders of the same names as the packages."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise AssertionError('{package} of this folder')")
    return tmp_path


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in `folder`."""
    program, *others = arguments
    command = [str(installed.parents[2] / "bin" / program), *others]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def test_nothing_lands_in_the_environment_but_graph_gemma(installed: Path) -> None:
    found = {path.name for path in installed.iterdir() if path.name != "dependencies.pth"}
    (information,) = installed.glob("*.dist-info")
    assert found - {information.name, "__pycache__"} == {NAME}
    assert (information / "top_level.txt").read_text().split() == [NAME]


def test_everything_is_there_but_what_users_never_call(installed: Path) -> None:
    package = installed / NAME
    found = {path.relative_to(package) for path in package.rglob("*") if path.suffix in KINDS}
    own = [ROOT / "__init__.py", ROOT / "py.typed", *(p for name in PACKAGES for p in (ROOT / name).rglob("*"))]
    files = [path for path in own if path.suffix in KINDS]
    left_out = {path.relative_to(ROOT) for path in files if within(module_name(path), *LEFT_OUT)}
    assert found == {path.relative_to(ROOT) for path in files} - left_out
    assert all(is_module(package) for package in LEFT_OUT)
    assert left_out


def test_no_installed_module_needs_what_is_left_out(installed: Path) -> None:
    """Commands that can do without import it inside a function, which first asks whether it is there."""
    for path in (installed / NAME).rglob("*.py"):
        source = ROOT / path.relative_to(installed / NAME)
        assert not [name for name in top_level_imports(source) if within(name, *LEFT_OUT)], source
        if source.parent != ROOT / "runners":
            assert not [name for name in own_imports(source) if within(name, *LEFT_OUT)], source


ONE_COPY = """
import sys
from graph_gemma.runners.settings.declared import COMMANDS, settings_of
import graph_gemma.runners.llm.llm, graph_gemma.passes.pipeline
assert all(map(settings_of, COMMANDS))
names = [name for name in sys.modules if name.split(".")[0] in ("graph_model", "passes", "conf", "runners")]
places = {module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "graph_gemma"}
print(names, {place for place in places if not place.startswith(sys.argv[1])})
try:
    import runners
except AssertionError as error:
    print(error)
"""


def test_only_graph_gemma_is_imported_next_to_like_folders(installed: Path, elsewhere: Path) -> None:
    result = run(installed, elsewhere, "python", "-c", ONE_COPY, str(installed / NAME))
    assert (result.stdout, result.returncode) == ("[] set()\nrunners of this folder\n", 0), result.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["benchmark", "peers=[transformers]"], "peers is [transformers], but what builds other engines"),
        (["verify", "report_dir=report"], "verify: what checks the ops"),
    ],
)
def test_commands_say_what_needs_a_checkout(installed: Path, elsewhere: Path, arguments: list[str], what: str) -> None:
    command, *others = arguments
    result = run(installed, elsewhere, "python", "-m", f"graph_gemma.runners.{command}", *others)
    expected = f"error: {what} is not installed with the package. Run the command from a checkout of the repository.\n"
    assert (result.returncode, result.stderr) == (2, expected)


@pytest.mark.slow
def test_installed_commands_run_next_to_like_folders(installed: Path, elsewhere: Path) -> None:
    where = ["backend=eager", f"cache_dir={elsewhere / 'cache'}"]
    prompt = ["prompts=['One day Grace']", "max_new_tokens=8"]
    answer = run(installed, elsewhere, "python", "-m", "graph_gemma.runners.infer", *where, *prompt)
    assert answer.returncode == 0, answer.stderr
    assert "One day Grace" in answer.stdout
    speed = ["lengths=[[8,4]]", "batch_sizes=[1]", "repeats=1", f"results_dir={elsewhere}"]
    result = run(installed, elsewhere, "python", "-m", "graph_gemma.runners.benchmark", *where, *speed)
    assert result.returncode == 0, result.stderr
    assert (elsewhere / "benchmark.csv").is_file()
