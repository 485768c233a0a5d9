"""Reading comprehension in BoolQ's form: a passage of a few facts, a yes-or-no question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from graph_gemma.runners.demo.facts import BOYS, KINDS, PEOPLE, Combination, Fact

Allowed = Callable[[Combination], bool]

TITLES = ("A busy day", "In the village", "A short story", "What happened")


@dataclass(frozen=True)
class Item:
    """A comprehension item: a passage and a question about one of its facts."""

    title: str
    facts: tuple[Fact, ...]  # of the passage, in its order: of one person, a kind once
    about: Fact  # the fact that the question is about; the question names its person
    word: str  # that the question names; the fact's own if the answer is yes

    @property
    def answer(self) -> bool:
        return self.word == self.about.word

    @property
    def kind(self) -> str:
        return self.about.kind

    @property
    def passage(self) -> str:
        return tell(self.facts)

    @property
    def question(self) -> str:
        return KINDS[self.kind].question.format(self.about.person, self.word)

    @property
    def prompt(self) -> str:
        """The item as BoolQ prompts are written, up to the answer."""
        return f"{self.title} -- {self.passage}\nQuestion: {self.question}?\nAnswer:"

    @property
    def completion(self) -> str:
        return " yes" if self.answer else " no"


def tell(facts: Sequence[Fact]) -> str:
    """The passage: the person is named once."""
    person = facts[0].person
    pronoun = "He" if person in BOYS else "She"
    return " ".join(fact.sentence(pronoun if index else person) for index, fact in enumerate(facts))


def draw_facts(rng: Random, count: int, allowed: Allowed) -> tuple[Fact, ...]:
    """So many facts about one person, each of another kind and allowed."""
    while True:
        person = rng.choice(PEOPLE)
        facts = tuple(Fact(k, person, rng.choice(KINDS[k].words)) for k in rng.sample(tuple(KINDS), count))
        if all(allowed(fact.combination) for fact in facts):
            return facts


def draw_word(rng: Random, about: Fact, answer: bool, allowed: Allowed) -> str:
    """The word that a question about a fact names: its own (yes), or another of its kind (no).

    The question's person and word are an allowed combination either way: words that are only ever asked about when
    the answer is no would tell it.
    """
    if answer:
        return about.word
    return rng.choice([w for w in KINDS[about.kind].words if w != about.word and allowed((about.person, w))])
