"""Settings of a wrong type: whatever stands in whichever setting, it is accepted or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from graph_model.errors import UserError
from passes.pipeline import build_passes
from runners.backends import select_backend
from runners.command_line.entry import compose
from runners.infer import infer
from runners.settings import ModelSettings
from runners.settings.values import boolean, text_or_none

VALUES: list[Any] = [None, True, 5, -1.5, "maybe", "", "no", [1], ["x", 2], {"x": 1}, [[]]]
SETTINGS = compose("infer", ["prompt_token_ids=[[5]]"])
# Hydra's own; and weights=random on the demo's shape instead of its weights, which is no matter here.
FOREIGN = ("hydra", "weights")


def leaves_and_groups(settings: Any, path: str = "") -> Iterator[str]:
    for name in settings:
        full = f"{path}{name}"
        if full in FOREIGN:
            continue
        yield full
        if OmegaConf.is_dict(settings[name]):
            yield from leaves_and_groups(settings[name], f"{full}.")


class Loading(Exception):
    """All settings were read."""


def load(settings: ModelSettings, *rest: Any) -> None:
    """In place of LLM: what it reads of the settings before it loads anything."""
    build_passes(settings.passes)
    select_backend(settings.backend, settings.cache_dir)
    raise Loading


@pytest.mark.parametrize("setting", [*leaves_and_groups(SETTINGS)])
def test_any_value_is_accepted_or_refused_by_a_message(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # dump_dir=maybe is a directory here
    monkeypatch.setattr("runners.llm.LLM", load)
    messages: list[str] = []
    group = OmegaConf.is_dict(OmegaConf.select(SETTINGS, setting))
    for value in VALUES:
        if group and isinstance(value, dict):
            continue  # Hydra merges it, and refuses names that are not there
        settings = copy.deepcopy(SETTINGS)
        settings.cache_dir = str(tmp_path)
        OmegaConf.set_struct(settings, False)
        OmegaConf.update(settings, setting, value, merge=False)
        try:
            infer(settings)
        except Loading:
            continue
        except UserError as error:
            messages.append(str(error))
    assert messages
    named = (setting.rpartition(".")[2], setting.split(".")[0], "are given; give one of them")
    assert all(any(part in message for part in named) for message in messages), messages


@pytest.mark.parametrize("value", ["no", "yes", "maybe", 1, 0, None])
def test_a_boolean_is_no_word(value: Any) -> None:
    """Hydra makes a text of yes and no, and a text is true for Python."""
    with pytest.raises(UserError, match=r"check is .*; it must be true or false"):
        boolean("check", value)


@pytest.mark.parametrize("value", [5, True, [1], ""])
def test_a_text_is_no_number(value: Any) -> None:
    with pytest.raises(UserError, match=r"prompts_file is .*; it must be a text, or null"):
        text_or_none("prompts_file", value)
