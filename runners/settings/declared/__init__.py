"""The settings of each command, a class in a module of the command's name."""

from __future__ import annotations

import importlib

from graph_gemma.runners.settings.schema import Settings

COMMANDS = (
    "activations",
    "benchmark",
    "compare",
    "compile_matrix",
    "convert",
    "evaluate",
    "export",
    "infer",
    "inspect_graph",
    "prune",
    "quantize",
    "verify",
)


def settings_of(command: str) -> type[Settings]:
    """The class that declares the settings of runners/<command>.py."""
    module = importlib.import_module(f"graph_gemma.runners.settings.declared.{command}")
    found: type[Settings] = getattr(module, f"{command.title().replace('_', '')}Settings")
    return found
