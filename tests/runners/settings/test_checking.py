"""Values of settings: whatever stands in whichever setting of a file, it is of the declared type or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.settings.checking import check, typed
from graph_gemma.runners.settings.conf_files import CONF
from graph_gemma.runners.settings.declared import COMMANDS, settings_of
from graph_gemma.runners.settings.schema import Group, Setting, Settings, Switches, members, setting

VALUES: list[Any] = [None, True, 5, -1.5, float("nan"), 10**400, "maybe", "", "no", [1], ["x", 2], {"x": 1}, [[]]]


def leaves(settings: type[Settings], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, declared in members(settings):
        yield (*path, name)
        if isinstance(declared, Group):
            yield from leaves(declared.settings, (*path, name))
        elif isinstance(declared, Switches):
            for thing, switch in declared.things.items():
                yield (*path, name, thing)
                yield from ((*path, name, thing, option) for option in switch.defaults)


def refusal(settings: type[Settings], values: dict[str, Any]) -> str:
    try:
        typed(settings, values)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", COMMANDS)
def test_any_value_is_of_the_declared_type_or_refused_by_name(command: str) -> None:
    settings = settings_of(command)
    required = {"export_dir": "x", "output_dir": "x"}
    base = {name: value for name, value in required.items() if name in dict(members(settings))}
    if command == "convert":
        base["model"] = {"path": "x"}  # type: ignore[assignment]
    for *groups, name in leaves(settings):
        for value in VALUES:
            values: dict[str, Any] = copy.deepcopy(base)
            inner = values
            for one in groups:
                inner = inner.setdefault(one, {})
            inner[name] = value
            refused = refusal(settings, values)
            assert ".".join((*groups, name)) in refused or not refused
            assert len(refused) < 1000


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_declared_is_refused_in_files_too(command: str) -> None:
    with pytest.raises(UserError, match="There is no setting colour"):
        typed(settings_of(command), {"colour": 1})
    with pytest.raises(UserError, match=r"There is no setting model\.pth\. Did you mean model\.path"):
        typed(settings_of("infer"), {"model": {"pth": "x"}})


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ({"flash": {"enabled": True}}, r"passes\.flash: there is no such thing\. There are canonicalize, "),
        *(({"rotary": value}, r"passes\.rotary is .*passes\.rotary\.enabled=false") for value in (None, "off", [1])),
        *(({"rotary": {"enabled": value}}, r"passes\.rotary\.enabled is .*true or false") for value in ("no", 0, None)),
        ({"rotary": {"fast": 1}}, r"passes\.rotary\.fast: there is no such option\. There are enabled\."),
        *(
            ({"scale_residual": {"exponent": value}}, r"passes\.scale_residual\.exponent is .*; it must be an integer")
            for value in (True, 2.5, "many", None)
        ),
    ],
)
def test_a_file_names_passes_that_there_are_and_their_options(passes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(settings_of("infer"), {"passes": passes})


class Example(Settings):
    """Settings of each type."""

    flag: bool = setting(False, "A flag.")
    count: int = setting(1, "A count.", least=1, most=9)
    share: float = setting(1.0, "A share.", above=0, most=1)
    name: str = setting("a", "A name.", choices=("a", "b", "c"))
    text: str | None = setting(None, "A text.")
    texts: tuple[str, ...] = setting([], "Texts.")
    pairs: tuple[tuple[int, ...], ...] | None = setting(None, "Pairs.", least=0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("flag", True, True),
        ("count", 9, 9),
        ("share", 1, 1.0),
        ("name", "b", "b"),
        ("text", None, None),
        ("texts", None, ()),
        ("texts", "a", ("a",)),
        ("texts", ["a", "b"], ("a", "b")),
        ("pairs", [[1, 2], [3]], ((1, 2), (3,))),
        ("pairs", None, None),
    ],
)
def test_values_have_the_declared_type(name: str, value: Any, expected: Any) -> None:
    found = getattr(typed(Example, {name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flag", "no", "flag is 'no'; it must be true or false."),
        ("flag", 1, "flag is 1; it must be true or false."),
        ("count", True, "count is true; it must be an integer of at least 1 and at most 9."),
        ("count", 10, "count is 10; it must be an integer of at least 1 and at most 9."),
        ("share", 0, "share is 0; it must be a number above 0 and at most 1."),
        ("name", "d", "name is 'd'; it must be a, b or c."),
        ("text", 5, "text is 5; it must be a text, or null."),
        ("text", "", "text is ''; it must be a text, or null."),
        ("texts", ["a", 1], "texts is ['a', 1]; it must be a list of texts, as in texts=['a','b']."),
        (
            "pairs",
            [1],
            "pairs is [1]; it must be a list of lists of integers of at least 0, as in pairs=[[2,5,7],[2,9]]",
        ),
        ("pairs", [[-1]], "pairs is [[-1]]; it must be a list of lists of integers of at least 0, as in"),
    ],
)
def test_the_error_is_made_of_the_declaration(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(name, dict(members(Example))[name], value)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_every_declared_default_keeps_its_own_rule() -> None:
    for command in COMMANDS:
        for _, declared in members(settings_of(command)):
            if isinstance(declared, Setting) and not declared.rule.required:
                check("name", declared, declared.default)


def test_options_set_what_their_group_declares(tmp_path: Path) -> None:
    for folder in ("model", "quant"):
        for file in (CONF / folder).glob("*.yaml"):
            typed(settings_of("infer"), {folder: OmegaConf.to_container(OmegaConf.load(file))})
