"""The tiny world: its words, the facts that its passages tell, and which combinations of words are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from random import Random

GIRLS = ("Anna", "Clara", "Ella", "Grace", "Ivy", "Lily", "Nora", "Ruby")
BOYS = ("Ben", "David", "Finn", "Henry", "Jack", "Max", "Oscar", "Sam")
PEOPLE = GIRLS + BOYS
PLACES = (
    "garden",
    "kitchen",
    "barn",
    "forest",
    "library",
    "cellar",
    "attic",
    "market",
    "school",
    "bakery",
    "meadow",
    "harbour",
)
THINGS = (
    "ball",
    "book",
    "cup",
    "lamp",
    "hat",
    "key",
    "kite",
    "drum",
    "basket",
    "coin",
    "bell",
    "map",
    "shell",
    "spoon",
    "scarf",
    "box",
)
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")
DEEDS = {  # what can be done to a thing: the verb and its past
    "wash": "washed",
    "paint": "painted",
    "hide": "hid",
    "find": "found",
    "lose": "lost",
    "sell": "sold",
    "break": "broke",
    "draw": "drew",
}
HELD_OUT_PERCENT = 15

Combination = tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """Something that is so of a person.

    kind: ``deed`` (verb and thing), ``visit`` (thing and place), ``colour`` (colour and thing). words: these two.
    """

    kind: str
    person: str
    words: tuple[str, str]

    @property
    def combination(self) -> Combination:
        """What training must not tell of if it is held out."""
        return (self.person, *self.words)

    def sentence(self) -> str:
        """The fact as a sentence of a passage."""
        person, (first, second) = self.person, self.words
        if self.kind == "deed":
            return f"{person} {DEEDS[first]} the {second}."
        if self.kind == "visit":
            return f"{person} took the {first} to the {second}."
        return f"{person} has a {first} {second}."


FACT_KINDS = ("deed", "visit", "colour")


def draw_fact(rng: Random, person: str) -> Fact:
    """A fact about a person."""
    kind, thing = rng.choice(FACT_KINDS), rng.choice(THINGS)
    if kind == "deed":
        return Fact(kind, person, (rng.choice(sorted(DEEDS)), thing))
    if kind == "visit":
        return Fact(kind, person, (thing, rng.choice(PLACES)))
    return Fact(kind, person, (rng.choice(COLOURS), thing))


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether the combination is kept out of everything that the model is trained on."""
    digest = hashlib.sha256("|".join(combination).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT
