"""The layering of design: who may import whom, where torch_npu may appear, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("graph_model", "passes", "conf", "runners")
NAME = "graph_gemma"  # what Python calls the folder that they are in
MAX_LINES = 350
SOURCES = [ROOT / "__init__.py", *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = NAME, *path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, at the top or inside functions; names that are modules included."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if is_module(inner) else source


def is_module(name: str) -> bool:
    first, *others = name.split(".")
    path = ROOT.joinpath(*others)
    return first == NAME and ((path / "__init__.py").is_file() or path.with_suffix(".py").is_file())


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if within(name, NAME)}


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def sources(*packages: str) -> list[Path]:
    found = [path for path in SOURCES if within(module_name(path), *packages)]
    assert found, packages
    return found


def edges_among(names: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Of every pair of siblings, at any depth of the tree, which imports which: two names with the same parent."""
    found: dict[str, set[str]] = {}
    for importer, imported in names.items():
        for name in imported:
            ours, theirs = importer.split("."), name.split(".")
            depth = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if depth is not None:
                found.setdefault(".".join(ours[: depth + 1]), set()).add(".".join(theirs[: depth + 1]))
    return found


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """A circle of imports, or []."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def all_imports() -> dict[str, set[str]]:
    return {module_name(path): own_imports(path) - {module_name(path)} for path in SOURCES}


def test_imports_go_down_only_between_the_layers() -> None:
    layers = [f"{NAME}.{layer}" for layer in ("graph_model", "passes", "runners")]
    for name, imported in all_imports().items():
        layer = ".".join(name.split(".")[:2])
        if layer in layers:
            above = layers[layers.index(layer) + 1 :]
            assert not [found for found in imported if within(found, *above, f"{NAME}.conf")], name


def test_packages_are_imported_by_their_full_names() -> None:
    """A module that is imported by two names is there twice, and its classes and ops too."""
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / ".ci").glob("*.py")]:
        assert not [name for name in imports(path) if within(name, *PACKAGES)], path


def test_imports_go_one_way_between_siblings_of_every_package() -> None:
    assert circle(edges_among(all_imports())) == []


def test_no_circle_of_files() -> None:
    assert circle(all_imports()) == []


def test_circles_would_be_found() -> None:
    assert circle({"a.x": {"b.y"}, "b.y": {"b.z"}, "b.z": set()}) == []
    assert circle(edges_among({"a.x": {"b.y"}, "b.z": {"a.w"}})) != []
    assert circle({"a.x": {"b.y"}, "b.y": {"a.x"}}) != []


def test_the_root_of_runners_holds_commands_only() -> None:
    for path in (ROOT / "runners").glob("*.py"):
        assert path.name == "__init__.py" or 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"), path


def test_the_plain_definition_imports_descriptions_only() -> None:
    families = ROOT / "graph_model" / "families"
    assert own_imports(families / "definition.py") == {
        "graph_gemma.graph_model.config",
        "graph_gemma.graph_model.families.layer",
    }
    assert own_imports(families / "layer.py") == set()


def test_config_and_canonical_ops_stand_alone() -> None:
    assert own_imports(ROOT / "graph_model" / "config.py") == set()
    below = {"graph_gemma.graph_model.config", "graph_gemma.graph_model.errors", "graph_gemma.graph_model.stated"}
    assert own_imports(ROOT / "graph_model" / "config_fields.py") == below
    for path in sources("graph_gemma.graph_model.ops"):
        assert all(within(name, "graph_gemma.graph_model.ops") for name in own_imports(path)), path


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_torch_npu_is_imported_in_the_ascend_parts_only(path: Path) -> None:
    """Op families say how torchair lowers their ops; all else that needs torch_npu is in the backend."""
    if not within(module_name(path), "graph_gemma.graph_model.ascend.ops", "graph_gemma.runners.backends.ascend"):
        assert not [name for name in imports(path) if within(name, "torch_npu", "torchair")]


def top_level_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.name for n in lines if isinstance(n, ast.Import) for alias in n.names} | {
        n.module for n in lines if isinstance(n, ast.ImportFrom) and n.module
    }


def test_torch_npu_is_imported_lazily() -> None:
    for path in SOURCES:
        assert not [name for name in top_level_imports(path) if within(name, "torch_npu", "torchair")], path


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_every_folder_of_python_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_test_modules_have_unique_names_and_no_package() -> None:
    """pytest puts them all into one namespace."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
    others = [ROOT / "tests" / "support", ROOT / "tests" / "checkout"]
    assert [p for p in (ROOT / "tests").rglob("__init__.py") if not {*others} & {*p.parents}] == []


def test_names_of_tests_have_at_most_60_characters() -> None:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py"))
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    names = [function.name for function in functions if function.name.startswith("test_")]
    assert [name for name in names if len(name) > 60] == []


def test_every_module_says_what_it_is() -> None:
    undocumented = [path for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert [path for path in undocumented if path.read_text().strip()] == []
