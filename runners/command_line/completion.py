"""Shell completion of graph-gemma: commands, names of settings, and the values of those that have a few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.settings.declared import settings_of
from graph_gemma.runners.settings.overrides import find
from graph_gemma.runners.settings.schema import Group, Setting, Settings, Switches, names

# The shell's words end at = and :, so it is given what comes after them.
_BASH = """\
_graph_gemma() {
    local IFS=$'\\n'
    COMPREPLY=($(graph-gemma --complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
complete -o default -o nospace -F _graph_gemma graph-gemma"""
SCRIPTS = {"bash": _BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}"}


def script(arguments: Sequence[str]) -> str:
    """The text that a shell evaluates. Raises UserError for a shell that there is none for."""
    shell = arguments[0] if arguments else ""
    if shell not in SCRIPTS:
        raise UserError(
            f"completion: {shown(shell)} is no shell that there is a completion for; there is one for "
            f'{" and ".join(SCRIPTS)}. In bash: eval "$(graph-gemma completion bash)".'
        )
    return SCRIPTS[shell]


def candidates(line: str, commands: Mapping[str, str]) -> list[str]:
    """What may stand at the end of a command line, each from the last = of its word on.

    commands: the module of each command.
    """
    words = line.split(" ")
    begun = words[-1]
    given = [word for word in words[1:-1] if word]
    if not given:
        return sorted(f"{name} " for name in (*commands, "completion", "--help", "--version") if name.startswith(begun))
    if given[0] not in commands:
        return [f"{name} " for name in SCRIPTS if name.startswith(begun)] if given[0] == "completion" else []
    settings = settings_of(commands[given[0]])
    name, equals, value = begun.partition("=")
    if equals:
        return [f"{one} " for one in _values(settings, name) if one.startswith(value)]
    known = (*(f"{one}=" for one in names(settings)), "--help")
    return sorted(one for one in known if one.startswith(begun))


def _values(settings: type[Settings], name: str) -> Iterable[str]:
    declared = find(settings, name)
    if isinstance(declared, Group):
        return declared.settings.options
    if isinstance(declared, Switches) or (isinstance(declared, Setting) and declared.type == "bool"):
        return ("true", "false") if not isinstance(declared, Switches) or "." in name else ()
    if isinstance(declared, Setting) and declared.rule.choices is not None:
        return [str(one) for one in declared.rule.choices()]
    return ()
