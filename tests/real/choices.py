"""Accuracy on PIQA's items (two ways to reach a goal), and how far two models are apart on them, item by item."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from graph_gemma.runners.engine import ScoreRequest
from graph_gemma.runners.llm import LLM
from tests.real.material import Material

TASK = "piqa/rc_0shot"
NUM_ITEMS = 400
MAX_TOKENS = 128  # of an item with one of its choices; longer items are left out


@dataclass(frozen=True)
class Item:
    """A question and its choices as token ids."""

    question: list[int]
    choices: tuple[list[int], ...]
    gold: int


@dataclass(frozen=True)
class Answers:
    """What a model chose of each item, and whether that is right: [items]."""

    chosen: np.ndarray
    right: np.ndarray


def read_items(material: Material, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """The first NUM_ITEMS that are short enough."""
    found: list[Item] = []
    for request in material.documents(TASK):
        document = request["doc"]
        question = tokenizer(document["query"]).input_ids
        whole = [tokenizer(f"{document['query']} {choice}").input_ids for choice in document["choices"]]
        if max(map(len, whole)) <= MAX_TOKENS and len(found) < NUM_ITEMS:
            # The space before a choice begins its first token, so that the question's tokens are the same.
            assert all(ids[: len(question)] == question for ids in whole), document["query"]
            found.append(Item(question, tuple(ids[len(question) :] for ids in whole), document["gold"]))
    return found


def answer(llm: LLM, items: list[Item]) -> Answers:
    """The choices whose tokens are the most probable together, as lm-evaluation-harness's `acc` takes them."""
    requests = [ScoreRequest.continuation(item.question, choice) for item in items for choice in item.choices]
    found = iter(llm.score(requests))
    chosen = np.array([np.argmax([next(found).logprobs.sum() for _ in item.choices]) for item in items])
    return Answers(chosen, chosen == np.array([item.gold for item in items]))


def compared(found: Answers, exact: Answers) -> str:
    """Accuracy; its difference to `exact` in points, with the 95 % interval; share of equal choices.

    The interval is the normal one of the mean of the items' differences: -1, 0 or 1 each.
    """
    accuracy = f"{100 * found.right.mean():.1f} %"
    if found is exact:
        return f"{accuracy} | - | 100.0 %"
    difference = 100 * (found.right.astype(float) - exact.right.astype(float))
    error = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    return f"{accuracy} | {difference.mean():+.1f} ± {error:.1f} | {100 * np.mean(found.chosen == exact.chosen):.1f} %"
