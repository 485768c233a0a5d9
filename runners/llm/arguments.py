"""What LLM and its methods are called with, as settings and sampling parameters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.settings.declared.infer import InferSettings, Sampling
from graph_gemma.runners.settings.declared.model import Model
from graph_gemma.runners.settings.schema import members

_OF_A_REQUEST = {"max_new_tokens", "max_tokens", "ignore_eos", "stop", *(name for name, _ in members(Sampling))}
_OF_THE_COMMAND = {
    *("prompts", "prompts_file", "prompt_token_ids", "chat", "chat_template", "sampling"),
    *("output_file", "overwrite", "check"),
}


def composed_settings(model: str | os.PathLike[str] | Sequence[str] | None, given: Mapping[str, Any]) -> InferSettings:
    """The settings that LLM(model, **given) asks for. Raises UserError."""
    for name in given:
        if name in _OF_A_REQUEST:
            raise UserError(
                f"LLM: {name} belongs to a request. Give it to generate, chat or stream: "
                f"llm.generate(PROMPTS, {name}={shown(given[name])})."
            )
        if name in _OF_THE_COMMAND:
            raise UserError(f"LLM: {name} is a setting of graph-gemma infer alone; see docs/library.md.")
    overrides: Sequence[str] = ()
    if isinstance(model, str | os.PathLike):
        given = {**_named_model(model), **given}
    elif model is not None:
        overrides = model
    settings: InferSettings = compose("infer", overrides, given)
    return settings


def _named_model(model: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a directory, or of a shape's name where there is no such directory."""
    path = os.fspath(model)
    if isinstance(model, str) and not os.path.exists(os.path.expanduser(path)):
        if model in Model.options:
            return {"model": model}
        if "=" in model:
            raise UserError(
                f"model is {shown(model)}, which is no directory. Settings are a list, LLM([{shown(model)}]), or "
                "keywords, as in LLM(dtype='bfloat16')."
            )
        if model.count("/") == 1 and not model.startswith(("/", ".", "~")):
            raise UserError(
                f"model is {shown(model)}, and there is no such directory. Nothing is downloaded: fetch the files "
                f"first, for example with hf download {shown(model)[1:-1]} --local-dir DIR, and give model=DIR."
            )
    return {"model.path": path}


def sampling_of(sampling: Any, given: Mapping[str, Any]) -> Any:
    """`sampling`, or SamplingParams of keywords. Raises UserError."""
    if not given:
        return sampling
    if sampling is not None:
        raise UserError(f"sampling and {next(iter(given))} are given; write all into SamplingParams(...), or none.")
    known = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in given:
        if name not in known and name != "max_tokens":
            raise UserError(f"There is no sampling parameter {shown(name)[1:-1]}. There are {', '.join(known)}.")
    return SamplingParams(**given)
