"""The tiny world: its words, the facts that its texts tell, and which combinations of words are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Union

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
QUALITIES = {  # a comparison and its converse
    "older": "younger",
    "taller": "shorter",
    "faster": "slower",
    "stronger": "weaker",
}

Combination = tuple[str, str, str]

HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Carried:
    """`person` took `thing` to `place`; both are there until a later fact moves them."""

    person: str
    thing: str
    place: str


@dataclass(frozen=True)
class Had:
    """`person` had `thing` in the beginning."""

    person: str
    thing: str


@dataclass(frozen=True)
class Gave:
    """`giver` handed `thing` to `receiver`, who has it until a later fact."""

    giver: str
    thing: str
    receiver: str


@dataclass(frozen=True)
class Owns:
    """`person` has a `thing` of this colour; nobody has two things of one sort."""

    person: str
    colour: str
    thing: str


@dataclass(frozen=True)
class Did:
    """`person` did this to `thing`, or (`done` false) did not."""

    person: str
    deed: str
    thing: str
    done: bool = True


@dataclass(frozen=True)
class More:
    """`person` is `quality` (older, ...) than `other`; transitive."""

    person: str
    quality: str
    other: str


@dataclass(frozen=True)
class Visited:
    """`person` went to `place`, after all earlier facts."""

    person: str
    place: str


@dataclass(frozen=True)
class PersonIn:
    """Asked only: `person` is in `place` in the end."""

    person: str
    place: str


@dataclass(frozen=True)
class ThingIn:
    """Asked only: `thing` is in `place` in the end."""

    thing: str
    place: str


@dataclass(frozen=True)
class Has:
    """Asked only: `person` has `thing` in the end."""

    person: str
    thing: str


@dataclass(frozen=True)
class Before:
    """Asked only: `person` was in `first` before `second`."""

    person: str
    first: str
    second: str


Fact = Union[Carried, Had, Gave, Owns, Did, More, Visited]  # noqa: UP007 - evaluated at run time
Query = Union[Carried, Gave, Owns, Did, More, PersonIn, ThingIn, Has, Before]  # noqa: UP007


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether the combination is kept out of everything that the model is trained on."""
    digest = hashlib.sha256("|".join(combination).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def fact_combination(fact: Fact) -> Combination | None:
    """The three words that a fact joins; None for a fact of two words, which is never held out."""
    if isinstance(fact, Carried):
        return (fact.person, fact.thing, fact.place)
    if isinstance(fact, Gave):
        return (fact.giver, fact.thing, fact.receiver)
    if isinstance(fact, Owns):
        return (fact.person, fact.colour, fact.thing)
    if isinstance(fact, Did):
        return (fact.person, fact.deed, fact.thing)
    if isinstance(fact, More):
        return unordered(fact.person, fact.quality, fact.other)
    return None


def unordered(first: str, middle: str, last: str) -> Combination:
    """The combination of a relation and its two ends, the same from both sides."""
    return (min(first, last), middle, max(first, last))
