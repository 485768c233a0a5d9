"""One side of a comparison, in a process of its own: a process can lower for one chip only."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graph_model.errors import UserError

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
    """Token ids of each text, and how many of them are its prompt; what comes behind is compared."""

    token_ids: list[list[int]]
    prompt_lengths: list[int]

    @property
    def answers(self) -> list[list[int]]:
        return [ids[length:] for ids, length in zip(self.token_ids, self.prompt_lengths, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """What a side gave: distributions [positions, vocab] float32 in a file, all texts behind one another, its greedy
    answers where it was asked for them, and its precision (dtype and quantisation)."""

    logprobs: Path
    answers: list[list[int]]
    precision: str


def run_side(side: Side, texts: Texts, max_new_tokens: int, path: Path) -> tuple[Texts, Outcome]:
    """Compute a side in a new process; returns the texts, with its greedy answers behind the bare prompts.

    max_new_tokens: length of its answers. Texts that have answers already keep them. path: for the distributions.
    Raises UserError.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_compute, side, texts, max_new_tokens, path).result()


def _compute(side: Side, texts: Texts, max_new_tokens: int, path: Path) -> tuple[Texts, Outcome]:
    from runners.entry import compose
    from runners.settings import resolve_settings

    # The error of a side must not look like the other's.
    try:
        settings = resolve_settings(compose("infer", side.overrides))
        compute = _with_transformers if side.peer else _with_engine
        texts, answers, rows = compute(settings, texts, max_new_tokens)
    except UserError as error:
        raise UserError(f"{side.name}: {error}") from None
    np.save(path, np.concatenate(rows))
    return texts, Outcome(path, answers, f"{settings.dtype} {settings.quantisation or settings.config.quantize}")


def _with_engine(settings: Any, texts: Texts, max_new_tokens: int) -> tuple[Texts, list[list[int]], list[np.ndarray]]:
    from runners.engine import SamplingParams, ScoreRequest
    from runners.llm import LLM

    with LLM(settings) as llm:
        prompts = [ids[:length] for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)]
        results = llm.generate(prompts, SamplingParams(max_new_tokens=max_new_tokens))
        answers = [result.token_ids for result in results]
        texts = _complete(texts, answers)
        requests = [
            ScoreRequest(ids[:-1], list(range(length - 1, len(ids) - 1)))
            for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)
        ]
        return texts, answers, [scores.logprobs for scores in llm.score(requests)]


def _with_transformers(
    settings: Any, texts: Texts, max_new_tokens: int
) -> tuple[Texts, list[list[int]], list[np.ndarray]]:
    import torch

    from runners.transformers_import import import_transformers

    if settings.checkpoint_dir is None or settings.random_weights:
        raise UserError("transformers needs a checkpoint: give model.path, without weights=random.")
    if settings.config.quantize is not None:
        raise UserError("transformers does not read quantised checkpoints of ModelSlim's; compare with our own.")
    transformers = import_transformers()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.checkpoint_dir,
        dtype=getattr(torch, settings.dtype),
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation="eager",
    ).eval()
    with torch.no_grad():
        answers = [
            model.generate(
                torch.tensor([ids[:length]]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(settings.config.eos_token_ids),
            )[0, length:].tolist()
            for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)
        ]
        texts = _complete(texts, answers)
        rows = [
            model(torch.tensor([ids[:-1]])).logits[0, length - 1 :].float().log_softmax(-1).numpy()
            for ids, length in zip(texts.token_ids, texts.prompt_lengths, strict=True)
        ]
    return texts, answers, rows


def _complete(texts: Texts, answers: Sequence[list[int]]) -> Texts:
    """Bare prompts get the answers; texts that have answers stay."""
    if any(texts.answers):
        return texts
    return Texts([ids + answer for ids, answer in zip(texts.token_ids, answers, strict=True)], texts.prompt_lengths)
