"""Checking settings against their declarations: values of the declared types, or a UserError that names the setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.settings.schema import (
    Group,
    Rule,
    Setting,
    Settings,
    Switch,
    Switches,
    literal,
    members,
    names,
)

_LARGEST_INTEGER = 2**63 - 1  # what a tensor can have
_TYPES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "tuple[str, ...]": "a list of texts",
    "tuple[int, ...]": "a list of integers",
    "tuple[tuple[int, ...], ...]": "a list of lists of integers",
}
_EXAMPLES = {
    "tuple[str, ...]": "['a','b']",
    "tuple[int, ...]": "[1,2]",
    "tuple[tuple[int, ...], ...]": "[[2,5,7],[2,9]]",
}
_S = TypeVar("_S", bound=Settings)


def typed(settings: type[_S], values: Mapping[str, Any], prefix: str = "") -> _S:
    """Check the values of all settings, as plain Python data by name. Raises UserError naming the setting."""
    declared = dict(members(settings))
    for name in values:
        if name not in declared:
            raise unknown(settings, f"{prefix}{name}", prefix=prefix)
    found: dict[str, Any] = {}
    for name, one in declared.items():
        full = f"{prefix}{name}"
        if isinstance(one, Group):
            found[name] = typed(one.settings, _mapping(full, values.get(name, {})), f"{full}.")
        elif isinstance(one, Switches):
            found[name] = _check_switches(full, one, values.get(name, {}))
        else:
            found[name] = check(full, one, values.get(name, one.default))
    return settings(**found)


def unknown(settings: type[Settings], name: str, instead: str = "", prefix: str = "") -> UserError:
    """The error for a name that no setting has. instead: what to write; empty: the nearest names.

    prefix: of the group that `settings` is.
    """
    # Imported here: only a mistake needs it.
    from difflib import get_close_matches

    known = list(names(settings, prefix))
    alike = [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]
    near = alike if 0 < len(alike) < 4 else get_close_matches(name[:100], known, 3)
    hint = f" Write {instead}." if instead else f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"There is no setting {shown(name)[1:-1]}.{hint} --help lists the settings.")


def check(name: str, declared: Setting, value: Any) -> Any:
    """`value` in the declared type. Raises UserError that names the setting, the value and the rule."""
    rule = declared.rule
    if value is None and rule.required:
        raise UserError(f"{name} is not set; it is {rule.must or must(name, declared)}. Give {name}=VALUE.")
    if value is None and declared.optional:
        return None
    value = [value] if declared.type == "tuple[str, ...]" and isinstance(value, str) else value
    value = [] if value is None and declared.type.startswith("tuple") else value
    if not _has_type(declared.type, value) or not _keeps_rule(rule, value):
        null = ", or null" if declared.optional and not rule.must else ""
        raise UserError(f"{name} is {literal(value)}; it must be {must(name, declared)}{null}.")
    return float(value) if declared.type == "float" else _tuple(value) if isinstance(value, list) else value


def must(name: str, declared: Setting) -> str:
    """The type and the rule in words."""
    rule = declared.rule
    if rule.must is not None:
        return rule.must
    if rule.choices is not None:
        *first, last = map(str, rule.choices())
        words = f"{', '.join(first)} or {last}" if first else last
        return f"a list of {words}" if declared.type.startswith("tuple") else words
    bounds = [
        "" if rule.least is None else f"of at least {rule.least}",
        "" if rule.above is None else f"above {rule.above}",
        "" if rule.most is None else f"at most {rule.most}",
        "" if rule.multiple_of is None else f"a multiple of {rule.multiple_of}",
    ]
    words = f"{_TYPES[declared.type]} {' and '.join(filter(None, bounds))}".rstrip()
    example = _EXAMPLES.get(declared.type)
    return f"{words}, as in {name}={example}" if example else words


def _keeps_rule(rule: Rule, value: Any) -> bool:
    if rule.choices is not None:
        known = tuple(rule.choices())
        return all(one in known for one in value) if isinstance(value, list) else value in known
    return all(
        (rule.least is None or one >= rule.least)
        and (rule.most is None or one <= rule.most)
        and (rule.above is None or one > rule.above)
        and (rule.multiple_of is None or one % rule.multiple_of == 0)
        and (not isinstance(one, int) or abs(one) <= max(_LARGEST_INTEGER, rule.most or 0))
        for one in _leaves(value)
    )


def check_option(name: str, declared: Switches, thing: str, option: str, value: Any) -> Any:
    """The value of an option of a thing, of its default's type. name: of the switches. Raises UserError."""
    full, defaults = f"{name}.{thing}.{option}", switch_of(name, declared, thing).defaults
    if option not in defaults:
        raise UserError(f"{full}: there is no such option. There are {', '.join(defaults)}.")
    kind = type(defaults[option]).__name__
    if not _has_type(kind, value):
        raise UserError(f"{full} is {literal(value)}; it must be {_TYPES[kind]}.")
    return value


def switch_of(name: str, declared: Switches, thing: str) -> Switch:
    """What is declared of a thing. Raises UserError if there is no such thing."""
    if thing not in declared.things:
        raise UserError(f"{name}.{thing}: there is no such thing. There are {', '.join(declared.things)}.")
    return declared.things[thing]


def _check_switches(name: str, declared: Switches, value: Any) -> dict[str, dict[str, Any]]:
    """The things that are listed, with the options that are given."""
    for thing, options in _mapping(name, value).items():
        switch_of(name, declared, thing)
        if not isinstance(options, Mapping):
            raise UserError(
                f"{name}.{thing} is {literal(options)}; it is a group of options. To leave it out, set "
                f"{name}.{thing}.enabled=false."
            )
        for option, given in options.items():
            check_option(name, declared, thing, option, given)
    return dict(value)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {literal(value)}; it is a group of settings, of which {name}.NAME=VALUE sets one.")
    return value


def _has_type(kind: str, value: Any) -> bool:
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return isinstance(value, list) and all(_has_type(inner, one) for one in value)
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind == "str":
        return isinstance(value, str) and value != ""
    if kind == "float":
        return isinstance(value, (int, float)) and abs(value) < float("inf")
    return isinstance(value, int)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
