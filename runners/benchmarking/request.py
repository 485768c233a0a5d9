"""What a benchmark is asked to do, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.benchmarking.peers import check_names
from runners.benchmarking.timing import Case
from runners.io.files import check_not_there
from runners.settings import ModelSettings, resolve_settings, writable_directory

# The phases, and the files that each writes to results_dir.
PHASES = {
    "speed": ("benchmark.csv", "benchmark.html"),
    "compile": ("compile.csv",),
    "host": ("host.csv",),
    "max_batch": ("max_batch.csv",),
}
_LENGTHS = ((2048, 2048), (1024, 1024), (512, 512), (256, 256))
# Settings of infer.py that say what to answer, and not with what.
_FOREIGN = ("prompts", "prompts_file", "prompt_token_ids", "output_file", "chat_template")


@dataclass(frozen=True)
class Request:
    """The settings of conf/benchmark.yaml.

    name: of the model, for the results. model: with room for all cases, and for no more unless the settings say so.
    cases: each length with each batch size, in the order of the settings. at_once: most runners alive at once.
    """

    name: str
    model: ModelSettings
    phase: str
    cases: list[Case]
    repeats: int
    peers: list[str]
    at_once: int
    latency_limit_s: float
    largest_batch: int
    results_dir: Path


def read_request(settings: Any) -> Request:
    """Check the settings. Raises UserError."""
    for name in _FOREIGN:
        if settings[name] is not None:
            raise UserError(f"{name} is given, but a benchmark makes its own prompts. Leave it out.")
    if settings.check:
        raise UserError("check is true, but a benchmark's answers are not checked. Give it to runners/infer.py.")
    if settings.phase not in PHASES:
        raise UserError(f"phase is {settings.phase!r}; it must be one of {', '.join(PHASES)}.")
    peers = _peers(settings.peers)
    batches = [_integer("batch_sizes", value, 1) for value in _list("batch_sizes", settings.batch_sizes)]
    model, lengths = _model(settings, max(batches))
    limit = settings.latency_limit_ms
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit <= 0:
        raise UserError(f"latency_limit_ms is {limit!r}; it must be a number of milliseconds above 0.")
    results_dir = writable_directory("results_dir", settings.results_dir)
    for file in PHASES[settings.phase]:
        check_not_there(settings, "results_dir", results_dir / file)
    return Request(
        name=settings.model.name if settings.model.path is None else Path(settings.model.path).name,
        model=model,
        phase=settings.phase,
        cases=[Case(batch, prompt, answer) for prompt, answer in lengths for batch in batches],
        repeats=_integer("repeats", settings.repeats, 1),
        peers=peers,
        at_once=_integer("at_once", settings.at_once, 2),
        latency_limit_s=limit / 1e3,
        largest_batch=_integer("largest_batch", settings.largest_batch, 1),
        results_dir=results_dir,
    )


def _model(settings: Any, largest_batch: int) -> tuple[ModelSettings, list[tuple[int, int]]]:
    """The model with room for the lengths and the largest batch, and the lengths."""
    settings = settings.copy()
    if settings.max_batch_size is None:
        settings.max_batch_size = largest_batch
    model = resolve_settings(settings)
    model = replace(model, max_batch_size=max(model.max_batch_size, largest_batch))
    if settings.max_seq_len is not None:
        return model, _lengths(settings.lengths, model.max_seq_len)
    lengths = _lengths(settings.lengths, model.config.max_position_embeddings)
    # A block more per sequence than it needs: the scheduler keeps some free before it admits a further prompt.
    longest = max(sum(pair) for pair in lengths) + model.block_size
    return replace(model, max_seq_len=min(longest, model.config.max_position_embeddings)), lengths


def _lengths(value: Any, limit: int) -> list[tuple[int, int]]:
    if value is None:
        fitting = [pair for pair in _LENGTHS if sum(pair) <= limit]
        return fitting or [(limit // 2, limit // 2)]
    pairs = []
    for item in _list("lengths", value):
        if isinstance(item, (int, str)) or len(item) != 2:
            raise UserError(f"lengths holds {item!r}; each entry must be [prompt tokens, answer tokens].")
        prompt, answer = (_integer("lengths", number, 1) for number in item)
        if prompt + answer > limit:
            raise UserError(
                f"lengths: [{prompt},{answer}] is {prompt + answer} tokens, and there is room for {limit} (max_seq_len "
                "where it is given, else the model's max_position_embeddings). Shorten it, or raise max_seq_len if the "
                "model has positions for it."
            )
        pairs.append((prompt, answer))
    return pairs


def _peers(value: Any) -> list[str]:
    if value is None or isinstance(value, (int, float, str)) or any(not isinstance(name, str) for name in value):
        raise UserError(f"peers is {value!r}; it must be a list of names, [transformers], or [] for none.")
    names = list(value)
    check_names(names)
    return names


def _list(name: str, value: Any) -> list[Any]:
    if value is None or isinstance(value, (int, float, str)) or not len(value):
        raise UserError(f"{name} is {value!r}; it must be a list with at least one entry.")
    return list(value)


def _integer(name: str, value: Any, smallest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise UserError(f"{name}: {value!r} must be an integer of at least {smallest}.")
    return value
