"""Texts of the tiny world, deterministic by seed: what the demo model is trained on and what it is tried on.

Held out are all combinations of three words (a person, a thing and a place, say) that `facts.is_held_out` picks.
No training text tells of such a combination or asks about it; every held-out item asks about one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from random import Random

from graph_model.demo.comprehension import SCENES, Item, draw_item
from graph_model.demo.facts import is_held_out
from graph_model.demo.scenes import Question, Scene
from graph_model.demo.stories import Story, draw_story

KINDS = tuple(SCENES)


def held_out_items(n: int = 2000) -> list[Item]:
    """The first n of the held-out items, all different; kinds of question and answers take equal turns."""
    rng = Random("held-out items")
    items: dict[str, Item] = {}
    for turn in count():
        kind, answer = _turn(turn)
        _, item = draw_item(rng, kind, answer, _asks_held_out)
        items.setdefault(item.prompt, item)
        if len(items) == n:
            return list(items.values())
    raise AssertionError("count() does not end")


def training_items(seed: int | str = 0) -> Iterator[Item]:
    """Items without end, none of which touches a held-out combination."""
    for _, item in training_scenes(seed):
        yield item


def training_scenes(seed: int | str = 0) -> Iterator[tuple[Scene, Item]]:
    """Training items, each with the scene that it asks about."""
    rng = Random(f"training items {seed}")
    for turn in count():
        kind, answer = _turn(turn)
        yield draw_item(rng, kind, answer, _is_known)


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
    """Prompts that show what the model does: beginnings of stories, and a comprehension item to be answered."""
    return [
        "One day Clara took a red kite to the meadow.",
        "One morning Oscar and Ivy walked to the forest. There they heard a small sound.",
        "Early in the morning Sam wanted to give Nora a gift.",
        "A busy day -- Ella took the lamp to the attic. Jack carried the basket to the barn. "
        "Ella went to the garden with the lamp.\nQuestion: is the lamp in the attic?\nAnswer:",
    ]


def _turn(turn: int) -> tuple[type, bool]:
    return KINDS[turn // 2 % len(KINDS)], turn % 2 == 0


def _asks_held_out(scene: Scene, question: Question) -> bool:
    return is_held_out(question.combination)


def _is_known(scene: Scene, question: Question) -> bool:
    return not is_held_out(question.combination) and not any(map(is_held_out, scene.combinations()))
