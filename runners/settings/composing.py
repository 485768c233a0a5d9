"""The values of all settings of a command, from its declarations where conf/ says the same, without Hydra."""

from __future__ import annotations

import os
from typing import Any

from graph_gemma.runners.settings.overrides import Overrides
from graph_gemma.runners.settings.schema import Group, Settings, Switches, members


def declared_values(settings: type[Settings], overrides: Overrides) -> dict[str, Any]:
    """The declared defaults with the overrides' values, as Hydra composes them of the files that are declared."""
    found: dict[str, Any] = {}
    for name, declared in members(settings):
        if isinstance(declared, Group):
            option = overrides.values.get(name)
            inner = dict(members(declared.settings))
            found[name] = {one: declared.default(one, setting, option) for one, setting in inner.items()}  # type: ignore[arg-type]
        elif isinstance(declared, Switches):
            found[name] = {thing: dict(switch.defaults) for thing, switch in declared.things.items()}
        else:
            found[name] = declared.default
    for name, value in overrides.values.items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place[part]
        if not isinstance(place[last], dict):
            place[last] = value
    return found


def is_as_declared(settings: type[Settings], config_dir: str) -> bool:
    """Whether the files of the command in conf/ are those that the declarations give; the user may have changed them.

    The one of the passes is left out: it is what declares them.
    """
    from graph_gemma.runners.settings.conf_files import files_of

    for name, text in files_of(settings).items():
        try:
            with open(os.path.join(config_dir, name), encoding="utf-8") as file:
                if file.read() != text:
                    return False
        except OSError:
            return False
    return True
