"""Declaring settings: a class per group; an attribute per setting with its type, default, help and rule.

class Sampling(Settings):
    top_k: int = setting(0, "Sample among the k most likely tokens; 0: no limit.", least=0)

An instance has the values as attributes of the declared types. Without dataclasses and torch: --help waits for what is
imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from graph_gemma.graph_model.errors import shown

_S = TypeVar("_S", bound="Settings")


class Rule(NamedTuple):
    """What a value must fulfil besides its type, and the words for it."""

    choices: Callable[[], Iterable[Any]] | None = None  # the values there are; called when a value is checked
    least: float | None = None
    most: float | None = None
    above: float | None = None
    multiple_of: int | None = None
    must: str | None = None  # what it must be, in words; None: composed of the type and what is above
    reads: bool = False  # whether it names a file or directory that is read, which no result ever replaces
    required: bool = False  # without a default that means something; null is refused


class Setting:
    """One setting. Its name and type are those of the attribute that it is assigned to."""

    def __init__(self, default: Any, help: str, rule: Rule) -> None:
        self.default, self.help, self.rule = default, help, rule

    def __set_name__(self, owner: type, name: str) -> None:
        self.type, _, optional = owner.__annotations__[name].partition(" | ")
        self.optional = bool(optional)


class Group:
    """A group of settings; where the class has `options`, NAME=OPTION sets all of them at once."""

    def __init__(self, settings: type[Settings], help: str, option: str | None) -> None:
        self.settings, self.help, self.option = settings, help, option

    def default(self, name: str, declared: Setting, option: str | None = None) -> Any:
        """The default of a setting in this group, with the group's own option or another one."""
        options = self.settings.options
        return options[option or self.option or ""].values.get(name, declared.default) if options else declared.default


class Switch(NamedTuple):
    """One of several things that are on or off: what it does, and by name its values where nothing is given."""

    help: str
    defaults: Mapping[str, bool | int]  # enabled, then its options


class Switches:
    """Things that NAME.THING.enabled=false leaves out, in the order in which they apply."""

    def __init__(self, help: str, things: Mapping[str, Switch]) -> None:
        self.help, self.things = help, things


Declared = Setting | Group | Switches


class Option(NamedTuple):
    """A choice for a whole group: what it is, and the values that differ from the defaults."""

    help: str
    values: Mapping[str, Any] = {}


class Settings:
    """A group of settings, or all of a command; the docstring opens its file in conf/ and its --help."""

    options: ClassVar[Mapping[str, Option]] = {}
    given: tuple[str, ...] = ()  # of a command: what was written on the command line

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def replace(self: _S, **values: Any) -> _S:
        """The same settings with some other values, which are not checked."""
        return type(self)(**{**self.__dict__, **values})


def setting(default: Any, help: str, **rule: Any) -> Any:
    """Declare a setting. rule: the fields of `Rule`; choices may be given as a tuple."""
    choices = rule.get("choices")
    if isinstance(choices, tuple):
        rule["choices"] = lambda: choices
    return Setting(default, help, Rule(**rule))


def required(must: str, help: str, **rule: Any) -> Any:
    """Declare a setting that has to be given. must: what it is, in a few words."""
    return Setting(None, help, Rule(must=must, required=True, **rule))


def group(settings: type[Settings], help: str = "", option: str | None = None) -> Any:
    """Declare a group of settings. option: the default one, where there are options."""
    return Group(settings, help, option)


def switches(help: str, things: Mapping[str, Switch]) -> Any:
    """Declare a group of things that are on or off, by their names."""
    return Switches(help, things)


def inherited(settings: type[Settings], name: str, default: Any) -> Any:
    """Declare a setting as another command does, with another default."""
    declared = dict(members(settings))[name]
    assert isinstance(declared, Setting)
    return Setting(default, declared.help, declared.rule)


def members(settings: type[Settings], own: bool = False) -> Iterator[tuple[str, Declared]]:
    """The settings and groups that a class declares, its own first. own: those only, and not its parents'."""
    seen = set()
    for owner in settings.__mro__[:1] if own else settings.__mro__:
        for name, declared in vars(owner).items():
            if isinstance(declared, Declared) and name not in seen:
                seen.add(name)
                yield name, declared


def names(settings: type[Settings], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings and groups."""
    for name, declared in members(settings):
        yield f"{prefix}{name}"
        if isinstance(declared, Group):
            yield from names(declared.settings, f"{prefix}{name}.")
        elif isinstance(declared, Switches):
            for thing, switch in declared.things.items():
                yield from (f"{prefix}{name}.{thing}.{option}" for option in switch.defaults)


def inputs(settings: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings that name what is read, and the files or directories that they name."""
    for name, declared in members(type(settings)):
        value = getattr(settings, name)
        if isinstance(declared, Group):
            yield from inputs(value, f"{prefix}{name}.")
        elif isinstance(declared, Setting) and declared.rule.reads and value is not None:
            yield f"{prefix}{name}", value


def literal(value: Any) -> str:
    """A value as messages and --help show it, with YAML's words; long ones are cut."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else shown(value)


def unquoted(value: Any) -> str:
    """A default as conf/ and --help show it: texts without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(unquoted, value))}]"
    return value if isinstance(value, str) else literal(value)
