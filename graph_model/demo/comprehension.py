"""Reading comprehension in BoolQ's form: a passage of a few facts, and whether it tells of something, yes or no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from graph_model.demo.facts import COLOURS, PEOPLE, PLACES, THINGS, Fact, draw_fact

Allowed = Callable[[tuple[Fact, ...]], bool]

WORDS = {"person": PEOPLE, "thing": THINGS, "place": PLACES, "colour": COLOURS}  # what is asked about, by kind
QUESTIONS = {
    "person": "is {} in the story",
    "thing": "is there a {} in the story",
    "place": "does the story go to the {}",
    "colour": "is something {} in the story",
}
TITLES = ("A busy day", "In the village", "A short story", "What happened")


@dataclass(frozen=True)
class Item:
    """A comprehension item; `facts` are what the passage tells, in its order; the question asks for `word`."""

    title: str
    facts: tuple[Fact, ...]
    kind: str
    word: str
    answer: bool

    @property
    def passage(self) -> str:
        return " ".join(fact.sentence() for fact in self.facts)

    @property
    def question(self) -> str:
        return QUESTIONS[self.kind].format(self.word)

    @property
    def prompt(self) -> str:
        """The item as BoolQ prompts are written, up to the answer."""
        return f"{self.title} -- {self.passage}\nQuestion: {self.question}?\nAnswer:"

    @property
    def completion(self) -> str:
        return " yes" if self.answer else " no"


def draw_facts(rng: Random, allowed: Allowed) -> tuple[Fact, ...]:
    """Two or three facts about as many people, allowed together."""
    while True:
        facts = tuple(draw_fact(rng, person) for person in rng.sample(PEOPLE, rng.choice((2, 3))))
        if allowed(facts):
            return facts


def draw_item(rng: Random, kind: str, answer: bool, allowed: Allowed) -> Item:
    """An item of this kind with this answer on allowed facts."""
    while True:
        facts = draw_facts(rng, allowed)
        told = told_words(facts, kind)
        if told:  # a passage without any word of the kind would tell that the answer is no
            word = draw_word(rng, kind, told, answer)
            return Item(rng.choice(TITLES), facts, kind, word, answer)


def draw_word(rng: Random, kind: str, told: list[str], answer: bool) -> str:
    """A word of the kind that the passage tells (yes) or does not (no)."""
    return rng.choice(told if answer else [word for word in WORDS[kind] if word not in told])


def told_words(facts: tuple[Fact, ...], kind: str) -> list[str]:
    """The words of a kind that occur in the facts."""
    words = [word for fact in facts for word in fact.combination]
    return [word for word in WORDS[kind] if word in words]
