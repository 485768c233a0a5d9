"""conf/ is what is declared: its files are written by a command, and Hydra composes the declared defaults of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.settings.checking import typed
from graph_gemma.runners.settings.conf_files import CONF, conf_files
from graph_gemma.runners.settings.declared import COMMANDS, settings_of
from graph_gemma.runners.settings.schema import Group, Setting, Settings, members

FILES = conf_files()


def test_there_are_no_other_files() -> None:
    assert {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_is_declared(name: str) -> None:
    written = (CONF / name).read_text(encoding="utf-8")
    assert written == FILES[name], "run python -m graph_gemma.runners.settings.conf_files"


def test_there_is_a_declaration_for_every_command() -> None:
    runners = Path(CONF).parent / "runners"
    assert set(COMMANDS) | {"lm_eval_cli"} == {path.stem for path in runners.glob("[!_]*.py")}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("convert", "export", "quantize")])
def test_hydra_composes_the_declared_defaults(command: str) -> None:
    composed = compose(command)
    assert_defaults(composed, settings_of(command), None)


def assert_defaults(values: Settings, declared: type[Settings], group: Group | None) -> None:
    for name, one in members(declared):
        if isinstance(one, Group):
            assert_defaults(getattr(values, name), one.settings, one)
        elif isinstance(one, Setting):
            default = one.default if group is None else group.default(name, one)
            assert getattr(values, name) == getattr(typed(declared, {name: default}), name)


@pytest.mark.parametrize(("command", "missing"), [("export", "export_dir"), ("quantize", "output_dir")])
def test_what_has_no_default_must_be_given(command: str, missing: str) -> None:
    with pytest.raises(Exception, match=f"{missing} is not set; it is the directory to write. Give {missing}=VALUE"):
        compose(command)
