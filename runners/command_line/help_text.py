"""The text of --help: every setting once, explained by the comment that stands with it in conf/."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

_WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """A setting's dotted name, its default as YAML (None: a section of settings), and its comment."""

    name: str
    default: str | None
    comment: str
    options: tuple[str, ...] = ()  # of a config group: the names to choose from


def help_text(config_dir: Path, config_name: str) -> str:
    """What `python runners/<config_name>.py --help` prints."""
    path = config_dir / f"{config_name}.yaml"
    blocks = [
        _wrap(_description(path)),
        f"usage: python runners/{config_name}.py [SETTING=VALUE ...]",
        "Settings, with their defaults:",
    ]
    for setting in settings_of(config_dir, path):
        options = f"  ({' | '.join(setting.options)})" if setting.options else ""
        line = f"  {setting.name}:" if setting.default is None else f"  {setting.name}={setting.default}{options}"
        comment = _wrap(setting.comment, indent="      ")
        blocks.append(f"{line}\n{comment}" if comment else line)
    blocks.append("Hydra's own options (--cfg job, --multirun, ...): --hydra-help")
    return "\n\n".join(blocks)


def settings_of(config_dir: Path, path: Path, package: str = "") -> list[Setting]:
    """The settings of a config file and of the groups in its defaults list; each name once, the first one wins."""
    found: dict[str, Setting] = {}
    for setting in _walk(config_dir, path, package):
        found.setdefault(setting.name, setting)
    return list(found.values())


def _walk(config_dir: Path, path: Path, package: str) -> Iterator[Setting]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return
    header = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    if header:
        package = "" if header[1] == "_global_" else header[1]
    for key, value in root.value:
        if key.value == "defaults":
            yield from _defaults(config_dir, path, package, value, lines)
        elif key.value != "hydra":
            yield from _settings(key, value, package, text, lines)


def _defaults(
    config_dir: Path, path: Path, package: str, node: yaml.SequenceNode, lines: list[str]
) -> Iterator[Setting]:
    """The groups of a defaults list, each followed by the settings of its options, the default option first."""
    for item in node.value:
        if isinstance(item, yaml.ScalarNode):
            if item.value != "_self_":
                yield from _walk(config_dir, path.with_name(f"{item.value}.yaml"), package)
            continue
        key, value = item.value[0]
        group = key.value.removeprefix("optional ").split("@")[0].lstrip("/")
        if group.startswith("override "):
            continue
        folder = (config_dir if key.value.startswith("/") else path.parent) / group
        options = sorted(option.stem for option in folder.glob("*.yaml"))
        about = [_comment(key, value, lines)]
        about += [f"{option}: {_description(folder / f'{option}.yaml')}" for option in options]
        comment = "\n".join(line for line in about if line.strip() and not line.endswith(": "))
        yield Setting(folder.relative_to(config_dir).as_posix(), value.value, comment, tuple(options))
        _, _, explicit = key.value.partition("@")
        inner = ".".join(part for part in (package, explicit or group.replace("/", ".")) if part)
        for option in sorted(options, key=lambda name: name != value.value):
            yield from _walk(config_dir, folder / f"{option}.yaml", inner)


def _settings(key: yaml.Node, value: yaml.Node, package: str, text: str, lines: list[str]) -> Iterator[Setting]:
    name = f"{package}.{key.value}" if package else key.value
    comment = _comment(key, value, lines)
    if isinstance(value, yaml.MappingNode) and value.value:
        if value.flow_style:  # {a: 1, b: 2} on one line shares the comment
            for inner_key, inner_value in value.value:
                yield Setting(f"{name}.{inner_key.value}", _yaml(inner_value, text), comment)
            return
        if comment:
            yield Setting(name, None, comment)
        for inner_key, inner_value in value.value:
            yield from _settings(inner_key, inner_value, name, text, lines)
        return
    yield Setting(name, _yaml(value, text), comment)


def _yaml(value: yaml.Node, text: str) -> str:
    """The value as it is written in the file, on one line."""
    return " ".join(text[value.start_mark.index : value.end_mark.index].split()) or "null"


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    """The comment lines directly above a key, and the one behind its value."""
    above: list[str] = []
    line = key.start_mark.line - 1
    while line >= 0 and lines[line].lstrip().startswith("#") and "@package" not in lines[line]:
        above.insert(0, lines[line].strip().lstrip("#").strip())
        line -= 1
    end = value.end_mark
    behind = re.match(r"\s*#\s*(.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
    if behind and end.line == value.start_mark.line:
        above.append(behind[1])
    return "\n".join(above)


def _description(path: Path) -> str:
    """The comment that opens a config file, where a blank line sets it apart from the first key."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "# @package" not in line]
    opening: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            return "\n".join(opening) if not line.strip() else ""
        opening.append(line.lstrip("#").strip())
    return "\n".join(opening)


def _wrap(text: str, indent: str = "") -> str:
    """Lines joined and wrapped; lines that end a sentence or open an option stay apart."""
    paragraphs = re.split(r"(?<=[.;:])\n|\n(?=\w+: )|\n\n", text)
    wrapped = [
        textwrap.fill(" ".join(p.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent) for p in paragraphs
    ]
    return "\n".join(line for line in wrapped if line.strip())
