"""What a benchmark is asked to do, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.bench.timing import Case
from runners.settings import ModelSettings, resolve_settings, writable_directory
from runners.values import text_list

PHASES = ("speed", "compile", "host", "max_batch")
_LENGTHS = ((2048, 2048), (1024, 1024), (512, 512), (256, 256))
# Settings of infer.py that say what to answer, and not with what.
_FOREIGN = ("prompts", "prompts_file", "prompt_token_ids", "output_file", "chat_template")


@dataclass(frozen=True)
class Request:
    """The settings of conf/benchmark.yaml.

    name: of the model, for the results. cases: each length with each batch size, in the order of the settings.
    """

    name: str
    model: ModelSettings
    phase: str
    cases: list[Case]
    repeats: int
    peers: list[str]
    latency_limit_s: float
    results_dir: Path


def read_request(settings: Any) -> Request:
    """Check the settings; max_batch_size grows to the largest batch asked for. Raises UserError."""
    for name in _FOREIGN:
        if settings[name] is not None:
            raise UserError(f"{name} is given, but a benchmark makes its own prompts. Leave it out.")
    if settings.phase not in PHASES:
        raise UserError(f"phase is {settings.phase!r}; it must be one of {', '.join(PHASES)}.")
    model = resolve_settings(settings)
    batches = [_integer("batch_sizes", value, 1) for value in _list("batch_sizes", settings.batch_sizes)]
    lengths = _lengths(settings.lengths, model.max_seq_len)
    limit = settings.latency_limit_ms
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit <= 0:
        raise UserError(f"latency_limit_ms is {limit!r}; it must be a number of milliseconds above 0.")
    return Request(
        name=settings.model.name if settings.model.path is None else Path(settings.model.path).name,
        model=replace(model, max_batch_size=max(model.max_batch_size, *batches)),
        phase=settings.phase,
        cases=[Case(batch, prompt, answer) for prompt, answer in lengths for batch in batches],
        repeats=_integer("repeats", settings.repeats, 1),
        peers=text_list("peers", settings.peers),
        latency_limit_s=limit / 1e3,
        results_dir=writable_directory("results_dir", settings.results_dir),
    )


def _lengths(value: Any, max_seq_len: int) -> list[tuple[int, int]]:
    if value is None:
        fitting = [pair for pair in _LENGTHS if sum(pair) <= max_seq_len]
        return fitting or [(max_seq_len // 2, max_seq_len // 2)]
    pairs = []
    for item in _list("lengths", value):
        if isinstance(item, (int, str)) or len(item) != 2:
            raise UserError(f"lengths holds {item!r}; each entry must be [prompt tokens, answer tokens].")
        prompt, answer = (_integer("lengths", number, 1) for number in item)
        if prompt + answer > max_seq_len:
            raise UserError(
                f"lengths: [{prompt},{answer}] is {prompt + answer} tokens, and max_seq_len is {max_seq_len}. Shorten "
                f"it, or give max_seq_len={prompt + answer} if the model has positions for it."
            )
        pairs.append((prompt, answer))
    return pairs


def _list(name: str, value: Any) -> list[Any]:
    if value is None or isinstance(value, (int, float, str)) or not len(value):
        raise UserError(f"{name} is {value!r}; it must be a list with at least one entry.")
    return list(value)


def _integer(name: str, value: Any, smallest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise UserError(f"{name}: {value!r} must be an integer of at least {smallest}.")
    return value
