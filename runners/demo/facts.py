"""The tiny world: its words, the facts that its passages tell, and which combinations of words are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

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
HELD_OUT_PERCENT = 15

Combination = tuple[str, str]  # a person, and a word that is so of that person


@dataclass(frozen=True)
class Kind:
    """A kind of fact; {} stand for a person and a word."""

    words: tuple[str, ...]
    sentence: str
    question: str  # answered by yes or no
    open_question: str  # answered by a word


KINDS = {
    "place": Kind(PLACES, "{} went to the {}.", "did {} go to the {}", "where did {} go"),
    "thing": Kind(THINGS, "{} took the {}.", "did {} take the {}", "what did {} take"),
    "colour": Kind(COLOURS, "{} likes {}.", "does {} like {}", "what does {} like"),
}


@dataclass(frozen=True)
class Fact:
    """Something that is so of a person: where one went, what one took, which colour one likes."""

    kind: str
    person: str
    word: str

    @property
    def combination(self) -> Combination:
        """What training must not tell of if it is held out."""
        return (self.person, self.word)

    def sentence(self, subject: str) -> str:
        """The fact as a sentence of a passage; the subject is the person or a pronoun."""
        return KINDS[self.kind].sentence.format(subject, self.word)


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether the combination is kept out of everything that the model is trained on."""
    digest = hashlib.sha256("|".join(combination).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT
