"""graph-gemma COMMAND [SETTING=VALUE ...]: every command of runners/ under one name, --version, shell completion."""

from __future__ import annotations

import sys
from importlib import import_module

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.command_line.entry import errors_reported, main
from graph_gemma.runners.settings.declared import settings_of

# The command as it is typed, and the module of runners/ that it is; its function has the same name.
COMMANDS = {
    "infer": "infer",
    "demo": "infer",
    "quantize": "quantize",
    "evaluate": "evaluate",
    "compare": "compare",
    "benchmark": "benchmark",
    "activations": "activations",
    "inspect": "inspect_graph",
    "export": "export",
    "verify": "verify",
    "convert": "convert",
    "prune": "prune",
}
_ABOUT = {
    "demo": "Answer the demo's own prompts with the small Gemma that comes with the package.",
    "completion": 'Print the completion of bash or zsh: eval "$(graph-gemma completion bash)".',
}


def run() -> None:
    """The console script graph-gemma: find the command, and call it with the arguments after it."""
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    with errors_reported():
        if first in ("--help", "-h", "help"):
            print(_help(), flush=True)
        elif first == "--version":
            from graph_gemma import __version__

            print(f"graph-gemma {__version__}", flush=True)
        elif first == "completion":
            from graph_gemma.runners.command_line.completion import script

            print(script(sys.argv[2:]), flush=True)
        elif first == "--complete":
            from graph_gemma.runners.command_line.completion import candidates

            print("\n".join(candidates(sys.argv[2], COMMANDS)), flush=True)
        elif first not in COMMANDS:
            raise _no_command(first)
        else:
            name = COMMANDS[first]
            main(getattr(import_module(f"graph_gemma.runners.{name}"), name), name, words=2)


def _no_command(name: str) -> UserError:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1)
    hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(COMMANDS)}."
    return UserError(f"There is no command {shown(name)[1:-1]}. {hint} graph-gemma --help says what each does.")


def _help() -> str:
    about = {name: _ABOUT.get(name) or _first_sentence(COMMANDS[name]) for name in (*COMMANDS, "completion")}
    width = max(map(len, about)) + 2
    return "\n".join(
        [
            "Gemma inference on Huawei Ascend NPUs as one static graph, and on CPUs.",
            "",
            "usage: graph-gemma COMMAND [SETTING=VALUE ...]",
            "",
            *(f"  {name:{width}}{text}" for name, text in about.items()),
            "",
            "graph-gemma COMMAND --help lists a command's settings; graph-gemma --version prints the version.",
        ]
    )


def _first_sentence(module: str) -> str:
    text = " ".join((settings_of(module).__doc__ or "").split())
    return text.partition(". ")[0].partition(": ")[0].partition(", and ")[0].rstrip(".") + "."
