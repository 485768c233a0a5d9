"""Reading-comprehension items in BoolQ's form: a passage of facts, a question about it, yes or no.

The kind of question and the answer are drawn first, then a passage, then a question of this kind with this answer
from those that the passage allows. A question that is answered "no" is about other words of the same passage, so
neither the question, nor the passage, nor the words they share tell the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from graph_model.demo import scenes
from graph_model.demo.facts import (
    Before,
    Carried,
    Combination,
    Did,
    Fact,
    Gave,
    Has,
    More,
    Owns,
    PersonIn,
    Query,
    ThingIn,
)
from graph_model.demo.scenes import Question, Scene


@dataclass(frozen=True)
class Item:
    """One item: the text in BoolQ's fields, and what it says as facts and a query."""

    title: str
    passage: str
    question: str
    answer: bool
    facts: tuple[Fact, ...]
    query: Query
    combination: Combination  # the three words that the question joins

    @property
    def prompt(self) -> str:
        """The text up to the answer, which is " yes" or " no"."""
        return f"{self.title} -- {self.passage}\nQuestion: {self.question}?\nAnswer:"

    @property
    def completion(self) -> str:
        return " yes" if self.answer else " no"


SCENES: dict[type, Callable[[Random], Scene]] = {  # the scene that can answer each kind of query
    PersonIn: scenes.carrying_scene,
    ThingIn: scenes.carrying_scene,
    Carried: scenes.carrying_scene,
    Has: scenes.giving_scene,
    Gave: scenes.giving_scene,
    Owns: scenes.owning_scene,
    Did: scenes.doing_scene,
    More: scenes.comparing_scene,
    Before: scenes.visiting_scene,
}


def draw_item(rng: Random, kind: type, answer: bool, allowed: Callable[[Scene, Question], bool]) -> tuple[Scene, Item]:
    """An item of this kind with this answer whose scene and question are allowed; the scene comes with it."""
    while True:
        scene = SCENES[kind](rng)
        of_kind = [q for q in scene.questions if type(q.query) is kind]
        if len({q.answer for q in of_kind}) < 2:  # a passage that leaves only one answer would tell it
            continue
        questions = [q for q in of_kind if q.answer is answer and allowed(scene, q)]
        if questions:
            question = rng.choice(questions)
            return scene, make_item(scene, question, rng.choice(question.wordings))


def make_item(scene: Scene, question: Question, wording: str) -> Item:
    return Item(
        title=scene.title,
        passage=scene.passage(),
        question=wording,
        answer=question.answer,
        facts=scene.facts,
        query=question.query,
        combination=question.combination,
    )
