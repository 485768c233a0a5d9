"""Settings one by one: of the right type, or a UserError that names the setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graph_model.errors import UserError


def text_or_none(name: str, value: Any) -> str | None:
    """The value of setting `name`, where it is a text that is not empty, or null."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise UserError(f"{name} is {value!r}; it must be a text, or null. A number is one in quotes: '{name}=\"7\"'.")


def boolean(name: str, value: Any) -> bool:
    """The value of setting `name`, true or false; words like yes and no are texts and neither."""
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; it must be true or false.")
    return value


def at_least(name: str, value: Any, smallest: int) -> int:
    """The value of setting `name`, an integer of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise UserError(f"{name} is {value!r}; it must be an integer of at least {smallest}.")
    return value


def text_list(name: str, value: Any) -> list[str]:
    """The texts of setting `name`: a list of them, a single one, or null for none."""
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, Sequence) or not all(isinstance(text, str) and text for text in values):
        raise UserError(f"{name} is {value!r}; it must be a list of texts, as in {name}=['a','b'].")
    return list(values)


def group(name: str, settings: Any) -> Any:
    """The settings under `name`, which must not have been replaced by a value."""
    values = settings.get(name)
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is {values!r}; it is a group of settings, of which {name}.NAME=VALUE sets one.")
    return values
