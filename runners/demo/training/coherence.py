"""Check that a text is one of the world's stories: one plot from beginning to end, with the same names and things."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from graph_gemma.runners.demo.facts import COLOURS, PEOPLE, PLACES, THINGS
from graph_gemma.runners.demo.stories import ANIMALS, ENDINGS, FOODS, MORNINGS, PLOTS, WEATHER, pronouns

_WORDS = {
    "a": PEOPLE,
    "b": PEOPLE,
    "thing": THINGS,
    "place": PLACES,
    "other_place": PLACES,
    "colour": COLOURS,
    "animal": ANIMALS,
    "food": FOODS,
    "weather": WEATHER,
}
_DIFFERENT = {"a": "b", "b": "a", "place": "other_place", "other_place": "place"}
_SLOT = re.compile(r"\{(\w+)\}")

Slots = dict[str, str]


def is_coherent(text: str) -> bool:
    """Whether a plot, with one choice of words, gives exactly this text."""
    return any(True for plot in PLOTS for _ in _follow([MORNINGS, *plot, ENDINGS], text, {}))


def _follow(steps: Sequence[Sequence[str]], text: str, slots: Slots) -> Iterator[Slots]:
    """Each choice of words for which the steps, a space between them, give all of `text`."""
    if not steps:
        if not text:
            yield slots
        return
    for wording in steps[0]:
        template = wording + (" " if len(steps) > 1 else "")
        for rest, filled in _match(_SLOT.split(template), text, slots):
            yield from _follow(steps[1:], rest, filled)


def _match(pieces: Sequence[str], text: str, slots: Slots) -> Iterator[tuple[str, Slots]]:
    """What is left of a text that begins with the template, whose pieces are literal and slot in turn."""
    literal, *others = pieces
    if not text.startswith(literal):
        return
    text = text[len(literal) :]
    if not others:
        yield text, slots
        return
    slot, *rest = others
    for word, filled in _fillings(slot, slots):
        if text.startswith(word):
            yield from _match(rest, text[len(word) :], filled)


def _fillings(slot: str, slots: Slots) -> Iterator[tuple[str, Slots]]:
    """The words that a slot may hold, with the choices that this makes."""
    if slot not in _WORDS:  # a pronoun of a person, who comes before it
        person = slot[0]
        if person in slots:
            yield pronouns(person, slots[person])[slot], slots
    elif slot in slots:
        yield slots[slot], slots
    else:
        for word in _WORDS[slot]:
            if word != slots.get(_DIFFERENT.get(slot, "")):
                yield word, {**slots, slot: word}
