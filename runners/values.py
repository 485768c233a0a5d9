"""Settings one by one: of the right type, or a UserError that names the setting."""

from __future__ import annotations

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
