"""Request of a benchmark: the cases to measure, and a model with room for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.benchmarking.peer_registry import check_names
from graph_gemma.runners.benchmarking.timing import Case
from graph_gemma.runners.io.files import check_not_there
from graph_gemma.runners.settings.declared.benchmark import BenchmarkSettings
from graph_gemma.runners.settings.model_settings import ModelSettings, resolve_settings, writable_directory

# The phases, and the files that each writes to results_dir.
PHASES = {
    "speed": ("benchmark.csv", "benchmark.html"),
    "compile": ("compile.csv",),
    "host": ("host.csv",),
    "max_batch": ("max_batch.csv",),
}
_LENGTHS = ((2048, 2048), (1024, 1024), (512, 512), (256, 256))
# Settings of infer.py about prompts, which a benchmark makes itself.
_FOREIGN = ("prompts", "prompts_file", "prompt_token_ids", "output_file", "chat_template")


@dataclass(frozen=True)
class Request:
    """The settings of conf/benchmark.yaml, checked."""

    name: str  # of the model, for the results
    model: ModelSettings  # with room for all cases, and for no more unless the settings say so
    phase: str
    cases: list[Case]  # each length with each batch size, in the order of the settings
    repeats: int
    peers: list[str]
    at_once: int  # most runners alive at once, ours included
    latency_limit_s: float
    largest_batch: int
    results_dir: Path


def read_request(settings: BenchmarkSettings) -> Request:
    """Check the settings, also against each other and the model, and fill in defaults. Raises UserError."""
    for name in _FOREIGN:
        if getattr(settings, name) is not None:
            raise UserError(f"{name} is given, but a benchmark makes its own prompts. Leave it out.")
    if settings.check:
        raise UserError("check is true, but a benchmark's answers are not checked. Give it to graph-gemma infer.")
    if not settings.batch_sizes:
        raise UserError("batch_sizes is []; it must be a list with at least one entry.")
    check_names(list(settings.peers))
    model, lengths = _model(settings)
    results_dir = writable_directory("results_dir", settings.results_dir)
    for file in PHASES[settings.phase]:
        check_not_there(settings, "results_dir", results_dir / file)
    return Request(
        name=settings.model.name if settings.model.path is None else Path(settings.model.path).name,
        model=model,
        phase=settings.phase,
        cases=[Case(batch, prompt, answer) for prompt, answer in lengths for batch in settings.batch_sizes],
        repeats=settings.repeats,
        peers=list(settings.peers),
        at_once=settings.at_once,
        latency_limit_s=settings.latency_limit_ms / 1e3,
        largest_batch=settings.largest_batch,
        results_dir=results_dir,
    )


def _model(settings: BenchmarkSettings) -> tuple[ModelSettings, list[tuple[int, int]]]:
    """The model with room for the lengths and the largest batch, and the lengths."""
    largest_batch = max(settings.batch_sizes)
    given: int | None = settings.max_batch_size
    model = resolve_settings(settings.replace(max_batch_size=largest_batch if given is None else given))
    model = replace(model, max_batch_size=max(model.max_batch_size, largest_batch))
    if settings.max_seq_len is not None:
        return model, _lengths(settings, model.max_seq_len)
    lengths = _lengths(settings, model.config.max_position_embeddings)
    # A block more per sequence than it needs: the scheduler keeps some free before it admits a further prompt.
    longest = max(sum(pair) for pair in lengths) + model.block_size
    return replace(model, max_seq_len=min(longest, model.config.max_position_embeddings)), lengths


def _lengths(settings: BenchmarkSettings, limit: int) -> list[tuple[int, int]]:
    if settings.lengths is None:
        fitting = [pair for pair in _LENGTHS if sum(pair) <= limit]
        return fitting or [(limit // 2, limit // 2)]
    if not settings.lengths:
        raise UserError("lengths is []; it must be a list with at least one entry.")
    pairs = []
    for pair in settings.lengths:
        if len(pair) != 2:
            raise UserError(f"lengths holds {list(pair)}; each entry must be [prompt tokens, answer tokens].")
        prompt, answer = pair
        if prompt + answer > limit:
            raise UserError(
                f"lengths: [{prompt},{answer}] is {prompt + answer} tokens, and there is room for {limit} (max_seq_len "
                "where it is given, else the model's max_position_embeddings). Shorten it, or raise max_seq_len if the "
                "model has positions for it."
            )
        pairs.append((prompt, answer))
    return pairs
