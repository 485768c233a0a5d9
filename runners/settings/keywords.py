"""Settings as Python's keyword arguments: dtype="bfloat16", quant={"kv8": True}, passes={"rotary": False}."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.settings.checking import check, check_option, switch_of, unknown
from graph_gemma.runners.settings.overrides import find, group_option, mindie
from graph_gemma.runners.settings.schema import Group, Settings, Switches


def of_keywords(settings: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the dotted names of settings, checked; a group may be a dictionary. Raises UserError."""
    return dict(_values(settings, given))


def _values(settings: type[Settings], given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        full = f"{prefix}{name}"
        declared = find(settings, full)
        if declared is None:
            raise unknown(settings, full, mindie(settings, full))
        if isinstance(declared, Switches):
            yield from _switched(full, declared, value)
        elif not isinstance(declared, Group):
            value = _plain(value)
            check(full, declared, value)
            yield full, value
        elif isinstance(value, Mapping):
            yield from _values(settings, value, f"{full}.")
        else:
            yield full, group_option(declared, full, value if isinstance(value, str) else repr(value))


def _switched(name: str, declared: Switches, value: Any) -> Iterator[tuple[str, Any]]:
    """passes={"rotary": False}, passes={"rotary": {"enabled": False}} or {"passes.rotary.enabled": False}."""
    if "." in name:
        group, thing, option = name.split(".")
        yield name, check_option(group, declared, thing, option, value)
        return
    if not isinstance(value, Mapping):
        raise UserError(
            f"{name} is {shown(value)}; it is a dictionary such as {{'NAME': False}}, which leaves one out."
        )
    for thing, given in value.items():
        switch_of(name, declared, thing)
        for option, one in (given if isinstance(given, Mapping) else {"enabled": given}).items():
            yield f"{name}.{thing}.{option}", check_option(name, declared, thing, option, one)


def _plain(value: Any) -> Any:
    """Paths as texts, tuples as lists, as the command line gives them."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
