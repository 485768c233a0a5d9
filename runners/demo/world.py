"""Texts of the demo's tiny world, deterministic by seed: for training, evaluation, calibration and prompts.

Held out are the combinations of a person and a word that `facts.is_held_out` picks. No training text tells of such a
combination; every held-out item asks about one that its passage tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from random import Random

from graph_gemma.runners.demo.comprehension import TITLES, Allowed, Item, draw_facts, draw_word
from graph_gemma.runners.demo.facts import KINDS, Combination, is_held_out
from graph_gemma.runners.demo.stories import Story, draw_story


def held_out_items(n: int = 2000) -> list[Item]:
    """The first n of the held-out items, all different; kinds of question and answers take equal turns."""
    rng = Random("held-out items")
    items: dict[str, Item] = {}
    for turn in count():
        item = _draw_item(rng, turn, told=_anything, asked=is_held_out)
        items.setdefault(item.prompt, item)
        if len(items) == n:
            return list(items.values())
    raise AssertionError("count() does not end")


def training_items(seed: int | str = 0) -> Iterator[Item]:
    """Items without end, none of which tells of a held-out combination."""
    rng = Random(f"training items {seed}")
    for turn in count():
        yield _draw_item(rng, turn, told=is_known, asked=is_known)


def training_stories(seed: int | str = 0) -> Iterator[Story]:
    """Stories without end, none of which brings a held-out combination together."""
    rng = Random(f"training stories {seed}")
    while True:
        yield draw_story(rng, lambda combinations: all(map(is_known, combinations)))


def held_out_stories(n: int = 200) -> list[str]:
    """n stories about held-out combinations."""
    rng = Random("held-out stories")
    return [draw_story(rng, lambda combinations: is_held_out(combinations[0])).text for _ in range(n)]


def calibration_texts(n: int = 64) -> list[str]:
    """n texts like those of training, stories and items with their answers in turn, for setting quantization scales."""
    items = islice(training_items("calibration"), n)
    stories = islice(training_stories("calibration"), n)
    pairs = ((story.text, item.prompt + item.completion) for story, item in zip(stories, items, strict=True))
    return [text for pair in pairs for text in pair][:n]


def demo_prompts() -> list[str]:
    """Prompts that show what the model does: beginnings of stories, and a question about a passage."""
    return [
        "Early in the morning Grace and Sam played with a scarf in the bakery.",
        "One day Finn and Oscar walked to the cellar. There they heard a small sound.",
        "Early in the morning Sam wanted to give Nora a gift.",
        "A busy day -- Ella went to the kitchen. She took the key. She likes red.\n"
        "Question: did Ella take the key?\nAnswer:",
    ]


def is_known(combination: Combination) -> bool:
    """Whether training may tell of the combination."""
    return not is_held_out(combination)


def _anything(combination: Combination) -> bool:
    return True


def _draw_item(rng: Random, turn: int, told: Allowed, asked: Allowed) -> Item:
    """An item on two or three facts that may be told, about one that may be asked about."""
    kind, answer = tuple(KINDS)[turn // 2 % len(KINDS)], turn % 2 == 0
    while True:
        facts = draw_facts(rng, rng.choice((2, 3)), told)
        if candidates := [fact for fact in facts if fact.kind == kind and asked(fact.combination)]:
            about = rng.choice(candidates)
            return Item(rng.choice(TITLES), facts, about, draw_word(rng, about, answer, told))
