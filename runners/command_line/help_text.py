"""The text of --help: every setting once, as it is declared."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from graph_gemma.runners.settings.schema import Group, Settings, Switches, literal, members, unquoted

_WIDTH = 100


def help_text(settings: type[Settings], command: str) -> str:
    """What --help prints. command: as it is typed, such as graph-gemma infer."""
    blocks = [
        _wrap(settings.__doc__ or ""),
        f"usage: {command} [SETTING=VALUE ...]",
        "Settings, with their defaults:",
        *_blocks(settings),
        "Hydra's own options (--cfg job, --multirun, ...): --hydra-help",
    ]
    return "\n\n".join(blocks)


def _blocks(settings: type[Settings], prefix: str = "", of: Group | None = None) -> Iterator[str]:
    for name, declared in members(settings):
        full = f"{prefix}{name}"
        if isinstance(declared, Group):
            yield _group(full, declared)
            yield from _blocks(declared.settings, f"{full}.", declared)
        elif isinstance(declared, Switches):
            yield _block(f"{full}:", declared.help)
            for thing, switch in declared.things.items():
                options = (f"{full}.{thing}.{option}={literal(value)}" for option, value in switch.defaults.items())
                yield _block("\n  ".join(options), switch.help)
        else:
            default = declared.default if of is None else of.default(name, declared)
            yield _block(f"{full}={unquoted(default)}", declared.help)


def _group(name: str, group: Group) -> str:
    options = group.settings.options
    if not options:
        return _block(f"{name}:", group.help or group.settings.__doc__ or "")
    about = [group.help or group.settings.__doc__ or "", *(f"{name}: {one.help}" for name, one in options.items())]
    return _block(f"{name}={group.option}  ({' | '.join(options)})", *about)


def _block(head: str, *paragraphs: str) -> str:
    return "\n".join([f"  {head}", *(_wrap(text, "      ") for text in paragraphs)])


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
