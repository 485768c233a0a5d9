"""Texts of the tiny world, deterministic by seed: what the demo model is trained on and what it is tried on.

Held out are all combinations of three words (a person, a verb and a thing, say) that `facts.is_held_out` picks. No
training text tells of such a combination; the passage of every held-out item does.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from random import Random

from graph_model.demo.comprehension import QUESTIONS, Item, draw_item
from graph_model.demo.facts import Fact, is_held_out
from graph_model.demo.stories import Story, draw_story

KINDS = tuple(QUESTIONS)


def held_out_items(n: int = 2000) -> list[Item]:
    """The first n of the held-out items, all different; kinds of question and answers take equal turns."""
    rng = Random("held-out items")
    items: dict[str, Item] = {}
    for turn in count():
        item = draw_item(rng, *_turn(turn), touches_held_out)
        items.setdefault(item.prompt, item)
        if len(items) == n:
            return list(items.values())
    raise AssertionError("count() does not end")


def training_items(seed: int | str = 0) -> Iterator[Item]:
    """Items without end, none of which touches a held-out combination."""
    rng = Random(f"training items {seed}")
    for turn in count():
        yield draw_item(rng, *_turn(turn), is_known)


def training_stories(seed: int | str = 0) -> Iterator[Story]:
    """Stories without end, none of which is about a held-out combination."""
    rng = Random(f"training stories {seed}")
    while True:
        yield draw_story(rng, lambda combination: not is_held_out(combination))


def held_out_stories(n: int = 200) -> list[str]:
    """n stories about held-out combinations."""
    rng = Random("held-out stories")
    return [draw_story(rng, is_held_out).text for _ in range(n)]


def calibration_texts(n: int = 64) -> list[str]:
    """n texts like those of training, stories and items with their answers in turn, for setting quantisation scales."""
    items = islice(training_items("calibration"), n)
    stories = islice(training_stories("calibration"), n)
    pairs = ((story.text, item.prompt + item.completion) for story, item in zip(stories, items, strict=True))
    return [text for pair in pairs for text in pair][:n]


def demo_prompts() -> list[str]:
    """Prompts that show what the model does: beginnings of stories."""
    return [
        "One day Clara took a red kite to the meadow.",
        "One morning Oscar and Ivy walked to the forest. There they heard a small sound.",
        "Early in the morning Sam wanted to give Nora a gift.",
        "One afternoon Grace and Ben were in the garden.",
    ]


def is_known(facts: tuple[Fact, ...]) -> bool:
    """Whether training may tell of the facts."""
    return not touches_held_out(facts)


def touches_held_out(facts: tuple[Fact, ...]) -> bool:
    """Whether any of the facts joins a held-out combination."""
    return any(is_held_out(fact.combination) for fact in facts)


def _turn(turn: int) -> tuple[str, bool]:
    return KINDS[turn // 2 % len(KINDS)], turn % 2 == 0
