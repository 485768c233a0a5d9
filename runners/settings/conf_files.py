"""Writing the files of conf/ from what is declared: python -m graph_gemma.runners.settings.conf_files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from graph_gemma.runners.settings.declared import COMMANDS, settings_of
from graph_gemma.runners.settings.schema import Group, Settings, Switches, literal, members, unquoted

CONF = Path(__file__).resolve().parents[2] / "conf"
_WIDTH = 120
# Hydra writes no files and no log of its own.
_QUIET = ["- override hydra/job_logging: disabled", "- override hydra/hydra_logging: disabled"]
_NO_FILES = "hydra:\n  run:\n    dir: .\n  output_subdir: null"


def conf_files() -> dict[str, str]:
    """The text of each file, by its path in conf/."""
    found: dict[str, str] = {}
    for command in COMMANDS:
        settings = settings_of(command)
        found |= files_of(settings)
        for name, declared in members(settings):
            if isinstance(declared, Switches):
                found[f"{name}/default.yaml"] = _switches(declared.help)
    return found


def files_of(settings: type[Settings]) -> dict[str, str]:
    """The text of each file of a command and of those that it takes settings from, but for switches."""
    found = {}
    for each in settings.__mro__:
        if issubclass(each, Settings) and each is not Settings:
            found[f"{_command_of(each)}.yaml"] = _command(each)
    for name, declared in members(settings):
        if isinstance(declared, Group):
            for option in declared.settings.options:
                found[f"{name}/{option}.yaml"] = _option(name, declared, option)
    return found


def _command(settings: type[Settings]) -> str:
    parent = settings.__bases__[0]
    above = [] if parent is Settings else [_command_of(parent)]
    chosen, blocks = [], []
    for name, declared in members(settings, own=True):
        if isinstance(declared, Switches):
            chosen.append(f"- {name}: default")
        elif isinstance(declared, Group) and declared.settings.options:
            chosen += [*_comment(declared.help), f"- {name}: {declared.option}"]
        else:
            blocks.append(_block(name, declared))
    order = ["defaults:", *(f"  {line}" for line in [*(f"- {one}" for one in above), *chosen, "- _self_", *_QUIET])]
    return "\n\n".join(["\n".join(_comment(settings.__doc__ or "")), "\n".join(order), *blocks, _NO_FILES]) + "\n"


def _command_of(settings: type[Settings]) -> str:
    return settings.__module__.rpartition(".")[2]


def _block(name: str, declared: object) -> str:
    if not isinstance(declared, Group):
        return "\n".join(_setting(name, declared))
    lines = [*_comment(declared.help or declared.settings.__doc__ or ""), f"{name}:"]
    for inner, one in members(declared.settings):
        lines += [f"  {line}" for line in _setting(inner, one, width=_WIDTH - 2)]
    return "\n".join(lines)


def _setting(name: str, declared: object, default: object = ..., width: int = _WIDTH) -> list[str]:
    value = declared.default if default is ... else default  # type: ignore[attr-defined]
    return [*_comment(declared.help, width), f"{name}: {unquoted(value)}"]  # type: ignore[attr-defined]


def _option(name: str, group: Group, option: str) -> str:
    lines = [*_comment(group.settings.options[option].help), ""]
    for inner, declared in members(group.settings):
        lines += _setting(inner, declared, group.default(inner, declared, option))  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def _switches(help: str) -> str:
    from graph_gemma.passes.pipeline import described

    lines = [*_comment(help), ""]
    for name, (about, defaults) in described().items():
        values = ", ".join(f"{option}: {literal(value)}" for option, value in defaults.items())
        lines += [*_comment(about), f"{name}: {{{values}}}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, width: int = _WIDTH) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), width, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _changed() -> Iterator[Path]:
    for name, text in conf_files().items():
        path = CONF / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            yield path


if __name__ == "__main__":
    for path in _changed():
        print(path)
