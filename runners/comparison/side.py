"""Compute one side of a comparison, in a process of its own: a process can lower for one chip only."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from graph_gemma.graph_model.errors import NoMemoryError, NotFiniteError, UserError
from graph_gemma.runners.backends.memory import free_memory

if TYPE_CHECKING:
    from graph_gemma.runners.engine import SamplingParams, TokenEvent
    from graph_gemma.runners.settings.model_settings import ModelSettings

TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Side:
    """A configuration: settings of runners/infer.py, computed by this project or by transformers."""

    name: str
    overrides: tuple[str, ...]
    peer: bool = False

    def __str__(self) -> str:
        return ("transformers " if self.peer else "") + " ".join(self.overrides)


@dataclass(frozen=True)
class Texts:
    """Texts whose tokens after the prompt are compared."""

    token_ids: list[list[int]]  # of each text
    prompt_lengths: list[int]  # how many of them are its prompt

    @property
    def answers(self) -> list[list[int]]:
        return [ids[length:] for ids, length in zip(self.token_ids, self.prompt_lengths, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """What a side gave."""

    logprobs: Path  # a file of distributions [positions, vocab] float32, of one text after the other
    answers: list[list[int]]  # greedy
    precision: str  # dtype and quantization
    backend: str  # description of what computed it


def run_side(side: Side, texts: Texts, sampling: SamplingParams, path: Path) -> tuple[Texts, Outcome]:
    """Compute a side in a new process; returns the texts, with its greedy answers after the bare prompts.

    sampling: of its answers, greedy. Texts that have answers already keep them. path: for the distributions. Bars show
    the progress. Raises UserError, and ChildProcessError if the process dies.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(compute, side, texts, sampling, path).result()
    except BrokenProcessPool:
        raise ChildProcessError(f"The process that computed {side.name} died; its memory may have run out.") from None


def compute(side: Side, texts: Texts, sampling: SamplingParams, path: Path) -> tuple[Texts, Outcome]:
    """As `run_side`, in this process."""
    from graph_gemma.runners.command_line.entry import compose
    from graph_gemma.runners.settings.model_settings import resolve_settings

    # The error of a side must not look like the other's.
    try:
        settings = resolve_settings(compose("infer", side.overrides))
        run = _with_transformers if side.peer else _with_engine
        texts, answers, rows, backend = run(settings, texts, sampling, side.name, path.parent)
    except UserError as error:
        raise UserError(f"{side.name}: {error}") from None
    np.save(path, np.concatenate(rows))
    precision = f"{settings.dtype} {settings.quantization or settings.config.quantize}"
    return texts, Outcome(path, answers, precision, backend)


def _with_engine(
    settings: ModelSettings, texts: Texts, sampling: SamplingParams, name: str, folder: Path
) -> tuple[Texts, list[list[int]], list[np.ndarray], str]:
    from graph_gemma.runners.engine import ScoreRequest, raise_errors
    from graph_gemma.runners.llm import LLM

    def bar_of(what: str) -> tuple[tqdm[Any], Callable[[int, TokenEvent], None]]:
        bar = tqdm(total=len(texts.token_ids), desc=f"{name}: {what}", unit="prompt")

        def follow(index: int, event: TokenEvent) -> None:
            if event.result is not None:
                bar.update()

        return bar, follow

    with LLM(settings) as llm:
        prompts = [ids[:length] for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)]
        bar, follow = bar_of("answers")
        with bar:
            results = llm.generate(prompts, sampling, follow)
        raise_errors(results)
        answers = [result.token_ids for result in results]
        texts = _complete(texts, answers)
        _check_room(texts, settings.config.vocab_size, folder)
        requests = [
            ScoreRequest(ids[:-1], list(range(length - 1, len(ids) - 1)))
            for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)
        ]
        bar, follow = bar_of("distributions")
        with bar:
            return texts, answers, [scores.logprobs for scores in llm.score(requests, follow)], llm.loaded.backend


def _with_transformers(
    settings: ModelSettings, texts: Texts, sampling: SamplingParams, name: str, folder: Path
) -> tuple[Texts, list[list[int]], list[np.ndarray], str]:
    from graph_gemma.runners.backends.transformers_import import import_transformers
    from graph_gemma.runners.io.tokenizer import end_of_answers, find_tokenizer

    if settings.checkpoint_dir is None or settings.random_weights:
        raise UserError("transformers needs a checkpoint: give model.path, without weights=random.")
    if settings.config.quantize is not None:
        raise UserError("transformers does not read quantized checkpoints of ModelSlim's; compare with our own.")
    transformers = import_transformers()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.checkpoint_dir,
        dtype=getattr(torch, settings.dtype),
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation="eager",
    ).eval()
    ends = [*settings.config.eos_token_ids, *end_of_answers(find_tokenizer(settings.checkpoint_dir))]
    # In the model's own configuration: generate replaces an eos_token_id of None by that.
    model.generation_config.eos_token_id = None if sampling.ignore_eos else ends

    def answer(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        room = min(sampling.max_new_tokens, settings.max_seq_len - len(prompt))
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=room, do_sample=False, pad_token_id=0)
        return whole[0, len(prompt) :].tolist()

    with torch.no_grad():
        prompts = [ids[:length] for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)]
        answers = [answer(prompt) for prompt in tqdm(prompts, desc=f"{name}: answers", unit="prompt")]
        texts = _complete(texts, answers)
        _check_room(texts, settings.config.vocab_size, folder)
        pairs = list(zip(texts.token_ids, texts.prompt_lengths, strict=True))
        rows = [
            model(torch.tensor([ids[:-1]])).logits[0, length - 1 :].float().log_softmax(-1).numpy()
            for ids, length in tqdm(pairs, desc=f"{name}: distributions", unit="prompt")
        ]
    if not all(np.isfinite(row).all() for row in rows):
        raise NotFiniteError.of(settings.dtype, "They are transformers' own.")
    return texts, answers, rows, f"transformers {transformers.__version__} on {model.device.type}"


def _complete(texts: Texts, answers: Sequence[list[int]]) -> Texts:
    """Bare prompts get the answers; texts that have answers stay."""
    if any(texts.answers):
        return texts
    if not all(answers):
        raise UserError("a prompt has an empty answer, so there is nothing to compare. Leave it out.")
    return Texts([ids + answer for ids, answer in zip(texts.token_ids, answers, strict=True)], texts.prompt_lengths)


def _check_room(texts: Texts, vocab_size: int, folder: Path) -> None:
    """Raise NoMemoryError unless the distributions of all places fit into memory, twice, and into `folder`."""
    count = sum(map(len, texts.answers))
    size = count * vocab_size * np.dtype(np.float32).itemsize
    rooms = {
        "memory": free_memory(torch.device("cpu")) / 2,
        f"the temporary directory {folder}": disk_usage(folder).free,
    }
    for where, room in rooms.items():
        if size > room:
            raise NoMemoryError(
                f"{count} distributions of {vocab_size} tokens take {size / 1e6:.3g} MB, more than there is in "
                f"{where}. Give fewer prompts, or a smaller max_new_tokens."
            )
