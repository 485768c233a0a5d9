"""Reading NAME=VALUE from the command line, without Hydra: what is wrong is refused before anything heavy is imported.

A text is taken as written, whatever characters it has: everything after the first =. In quotes, as Hydra writes texts,
it is what the quotes enclose. Lists are Hydra's: [a,'b c',[1,2]]. Nothing is interpolated; ${...} has its meaning in
the files of conf/ only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.settings.checking import check, check_option, unknown
from graph_gemma.runners.settings.mindie import FLAGS
from graph_gemma.runners.settings.schema import Declared, Group, Setting, Settings, Switches, literal, members

# Hydra's own options and, where they take one, whether a value follows.
_HYDRA_FLAGS = {
    **dict.fromkeys(("--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"), False),
    **dict.fromkeys(("--shell-completion", "-sc"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"), True),
    **dict.fromkeys(("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"), True),
}
_INTEGER = re.compile(r"[+-]?\d+(_\d+)*")
_NUMBER = re.compile(r"[+-]?((\d[\d_]*)?\.\d+|\d[\d_]*\.?)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
_MOST_NESTED = 2
_MOST_DIGITS = 400  # of a number; more have no use, and Python refuses some


class Overrides(NamedTuple):
    """What a command line asks for."""

    values: dict[str, Any]  # by the setting's dotted name; of a group with options, the option
    hydra: list[str]  # Hydra's flags and its own settings, as they were given
    sweeps: list[str]  # with --multirun, the settings, in Hydra's grammar: its choices are not known yet
    own_files: bool  # files of the user's may have further options of a group

    def as_hydra(self) -> list[str]:
        """The arguments for Hydra that give these values."""
        return [*self.hydra, *self.sweeps, *(f"{name}={_hydra(value)}" for name, value in self.values.items())]


def read(settings: type[Settings], arguments: Sequence[str]) -> Overrides:
    """Split, parse and check the arguments of a command with these settings. Raises UserError."""
    found = Overrides({}, [], [], any(one.startswith(("--config-", "-c", "hydra.searchpath")) for one in arguments))
    multirun = "--multirun" in arguments or "-m" in arguments
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("-"):
            found.hydra.extend(_flag(settings, argument, waiting))
            continue
        name, equals, text = argument.partition("=")
        if name.lstrip("+~").startswith("hydra"):
            found.hydra.append(argument)
            continue
        declared = _declared(settings, argument, name, equals)
        if multirun:
            found.sweeps.append(f"{name}={_escaped(text)}")
        elif isinstance(declared, Group):
            found.values[name] = group_option(declared, name, text, found.own_files)
        elif isinstance(declared, Switches):
            found.values[name] = _switch(declared, name, text, found.own_files)
        else:
            value = found.values[name] = _value(declared, name, text)
            check(name, declared, value)
    return found


def _declared(settings: type[Settings], argument: str, name: str, equals: str) -> Declared:
    bare = name.lstrip("+~")
    declared = find(settings, bare)
    if declared is None:
        if not equals:
            raise UserError(f"{shown(argument)} is no setting; settings are written NAME=VALUE. --help lists them.")
        raise unknown(settings, bare, mindie(settings, bare))
    if name != bare or not equals:
        raise UserError(
            f"{shown(argument)[1:-1]}: a setting is written {bare}=VALUE, without + or ~ before it; none can be added "
            "or removed."
        )
    return declared


def find(settings: type[Settings], name: str) -> Declared | None:
    """The setting or group of a dotted name; that of passes.rotary.enabled is the switches passes."""
    first, _, rest = name.partition(".")
    declared = dict(members(settings)).get(first)
    if isinstance(declared, Group) and rest:
        return find(declared.settings, rest)
    if isinstance(declared, Switches) and rest:
        thing, _, option = rest.partition(".")
        return declared if thing in declared.things and option in declared.things[thing].defaults else None
    return None if rest else declared


def _flag(settings: type[Settings], argument: str, waiting: Iterator[str]) -> list[str]:
    name, equals, _ = argument.partition("=")
    if name in _HYDRA_FLAGS:
        return [argument, *([next(waiting, "")] if _HYDRA_FLAGS[name] and not equals else [])]
    bare = name.lstrip("-").replace("-", "_")
    ours = f"{bare}=VALUE" if find(settings, bare) else mindie(settings, bare)
    raise UserError(
        f"There is no option {shown(name)[1:-1]}. Settings are written NAME=VALUE, without dashes"
        f"{f': {ours}' if ours else ''}. --help lists them."
    )


def mindie(settings: type[Settings], name: str) -> str:
    """How what MindIE-LLM's commands call `name` is written for this command; empty for other names."""
    ours = FLAGS.get(name.replace("-", "_"), "")
    return ours if ours and find(settings, ours.partition("=")[0]) else ""


def group_option(declared: Group, name: str, text: str, own_files: bool = False) -> str:
    """`text` as an option of the group. own_files: files of the user's may have further ones. Raises UserError."""
    options = declared.settings.options
    if not options:
        raise UserError(f"{name} is {shown(text)}; it is a group of settings, of which {name}.NAME=VALUE sets one.")
    if text not in options and not own_files:
        raise UserError(
            f"{name} is {shown(text)}; it must be one of {', '.join(options)}. {name}.NAME=VALUE sets one setting of "
            f"the group, such as {name}.{next(name for name, _ in members(declared.settings))}."
        )
    return text


def _switch(declared: Switches, name: str, text: str, own_files: bool) -> Any:
    if "." not in name:
        if text != "default" and not own_files:
            raise UserError(f"{name} is {shown(text)}; {name}.NAME.enabled=false leaves one out.")
        return text
    group, thing, option = name.split(".")
    return check_option(group, declared, thing, option, scalar(text))


def _value(declared: Setting, name: str, text: str) -> Any:
    """The value of a setting in plain Python, of the declared type if it is written as one."""
    if text.strip().lower() == "null":
        return None
    quoted = _quoted(text, 0)
    if quoted is not None and quoted[1] == len(text):
        return quoted[0]
    if declared.type == "str":
        return text
    if text.startswith("["):
        value, end = _list(name, text, 0)
        if end != len(text):
            raise _malformed(name, text, f"after its end stands {shown(text[end:])}")
        return value
    return text if declared.type == "tuple[str, ...]" else scalar(text.strip())


def scalar(text: str) -> Any:
    """A number, true, false or null, as Hydra writes them; other texts as they are."""
    word = {"null": None, "true": True, "false": False}
    if text.lower() in word:
        return word[text.lower()]
    if len(text) <= _MOST_DIGITS and _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if len(text) <= _MOST_DIGITS and _NUMBER.fullmatch(text) else text


def _list(name: str, text: str, start: int, depth: int = 1) -> tuple[list[Any], int]:
    """The list that opens at `start`, and where it ends. depth: of lists within lists."""
    if depth > _MOST_NESTED:
        raise _malformed(name, text, "it has lists within lists within lists")
    values: list[Any] = []
    at = _skip(text, start + 1)
    while not text.startswith("]", at):
        if values and (at == len(text) or text[at] != ","):
            raise _malformed(name, text, f"a comma or ] is missing before {shown(text[at:])}" if text[at:] else _OPEN)
        at = _skip(text, at + 1) if values else at
        if at == len(text):
            raise _malformed(name, text, _OPEN)
        value, at = _entry(name, text, at, depth)
        values.append(value)
        at = _skip(text, at)
    return values, at + 1


_OPEN = "its ] is missing"


def _entry(name: str, text: str, at: int, depth: int) -> tuple[Any, int]:
    if text[at] == "[":
        return _list(name, text, at, depth + 1)
    if text[at] in "'\"":
        quoted = _quoted(text, at)
        if quoted is None:
            raise _malformed(name, text, f"the quote before {shown(text[at + 1 :])} is not closed")
        return quoted
    end, inner = at, 0
    while end < len(text) and (inner or text[end] not in ",]"):
        if text[end] in "'\"":
            raise _malformed(name, text, f"there is a quote within {shown(text[at:])}")
        inner += {"[": 1, "]": -1}.get(text[end], 0)
        end += 1
    entry = text[at:end].strip()
    if not entry:
        raise _malformed(name, text, "an entry is empty")
    return scalar(entry), end


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _malformed(name: str, text: str, why: str) -> UserError:
    return UserError(
        f"{name} is no list, {why}. Write each text in quotes, and all of them in the shell's: \"{name}=['a','b']\". "
        f"Within a text write \\' for '. Given was {shown(text)}."
    )


def _quoted(text: str, start: int) -> tuple[str, int] | None:
    """The text in the quotes that open at `start`, and where it ends; None where none open or they are not closed.

    Backslashes before a quote are halved, and an odd one makes it part of the text; others stand for themselves.
    """
    quote = text[start : start + 1]
    if quote not in ("'", '"'):
        return None
    parts, at = [], start + 1
    for found in re.finditer(rf"(\\*){quote}", text[at:]):
        slashes = len(found[1])
        parts.append(text[at : start + 1 + found.start()] + "\\" * (slashes // 2))
        at = start + 1 + found.end()
        if slashes % 2 == 0:
            return "".join(parts), at
        parts.append(quote)
    return None


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if not isinstance(value, str):
        return literal(value) if value is None or isinstance(value, bool) else repr(value)
    text = re.sub(r"(\\*)(?='|$)", r"\1\1", _escaped(value)).replace("'", "\\'")
    return f"'{text}'"


def _escaped(text: str) -> str:
    """A text in which OmegaConf finds nothing to interpolate: ${ with a backslash before it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
