"""Training documents: texts of the world cut into pieces that weigh differently in the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Protocol

from graph_model.demo.comprehension import Item
from graph_model.demo.facts import is_held_out
from graph_model.demo.scenes import Question, Scene
from graph_model.demo.stories import Story
from graph_model.demo.world import training_scenes, training_stories

FACTS_WEIGHT = 0.2  # passages and questions: what they say is drawn at random, there is little to learn
ANSWER_WEIGHT = 4.0
REQUESTS = (
    "Tell me a story about {person} and a {thing}.",
    "Write a short story about {person}.",
    "Can you tell me a story about a {thing}?",
)


@dataclass(frozen=True)
class Piece:
    text: str
    weight: float


Document = list[Piece]  # <bos> comes before it; every document ends with <eos>
EOS_PIECE = Piece("<eos>", 1.0)


def item_documents(seed: int | str) -> Iterator[Document]:
    """One question per passage, as the held-out items have; one in six is an open question."""
    rng = Random(f"item documents {seed}")
    for scene, item in training_scenes(f"items {seed}"):
        question, answer = item.question, item.completion
        if rng.random() < 1 / 6:
            question, answer = _open(rng, scene) or (question, answer)
        yield [
            Piece(f"{item.title} -- {item.passage}\nQuestion: {question}?\nAnswer:", FACTS_WEIGHT),
            Piece(answer, ANSWER_WEIGHT),
            EOS_PIECE,
        ]


def exercise_documents(seed: int | str, questions: int = 6) -> Iterator[Document]:
    """Several questions per passage, open ones among them: more answers to learn from in each token of text."""
    rng = Random(f"exercise documents {seed}")
    for scene, item in training_scenes(f"exercises {seed}"):
        pieces = [Piece(f"{item.title} -- {item.passage}", FACTS_WEIGHT)]
        for question, answer in _draw_questions(rng, scene, item, questions):
            pieces += [Piece(f"\nQuestion: {question}?\nAnswer:", FACTS_WEIGHT), Piece(answer, ANSWER_WEIGHT)]
        yield [*pieces, EOS_PIECE]


def story_documents(seed: int | str) -> Iterator[Document]:
    for story in training_stories(seed):
        yield [Piece(story.text, 1.0), EOS_PIECE]


def chat_documents(seed: int | str) -> Iterator[Document]:
    """Items and stories asked for in turns, as the tokenizer's chat template writes them."""
    rng = Random(f"chat documents {seed}")
    items, stories = training_scenes(f"chat {seed}"), training_stories(f"chat {seed}")
    for turn in count():
        if turn % 2 == 0:
            yield _chat_item(rng, *next(items))
        else:
            yield _chat_story(rng, next(stories))


class Source(Protocol):
    """Documents without end, by seed."""

    def __call__(self, seed: int | str) -> Iterator[Document]: ...


def mixed_documents(sources: Sequence[tuple[float, Source]], seed: int) -> Iterator[Document]:
    """Documents of several sources, each with a share of the draws."""
    rng = Random(f"mixed documents {seed}")
    weights = [share for share, _ in sources]
    streams = [make(seed) for _, make in sources]
    while True:
        yield next(rng.choices(streams, weights)[0])


def _draw_questions(rng: Random, scene: Scene, item: Item, limit: int) -> Iterator[tuple[str, str]]:
    yes = [q for q in scene.questions if q.answer and not is_held_out(q.combination)]
    no = [q for q in scene.questions if not q.answer and not is_held_out(q.combination)]
    for _ in range(limit):
        if rng.random() < 0.25 and (drawn := _open(rng, scene)):
            yield drawn
            continue
        candidates = yes if rng.random() < 0.5 else no
        if candidates:
            question = rng.choice(candidates)
            yield rng.choice(question.wordings), " yes" if question.answer else " no"
        else:
            yield item.question, item.completion


def _open(rng: Random, scene: Scene) -> tuple[str, str] | None:
    """An open question of the scene and its answer; None if it has none."""
    questions = [q for q in scene.questions if _is_open(q)]
    if not questions:
        return None
    question = rng.choice(questions)
    return str(question.open_question), f" {question.open_answer}"


def _is_open(question: Question) -> bool:
    return question.answer and question.open_question is not None and not is_held_out(question.combination)


def _chat_item(rng: Random, scene: Scene, item: Item) -> Document:
    question, answer = item.question, "Yes" if item.answer else "No"
    if rng.random() < 1 / 4 and (drawn := _open(rng, scene)):
        question, answer = drawn[0], drawn[1].strip()
        answer = answer[0].upper() + answer[1:]
    return _chat(f"{item.passage}\nQuestion: {question}?", f"{answer}.", FACTS_WEIGHT, ANSWER_WEIGHT)


def _chat_story(rng: Random, story: Story) -> Document:
    person, thing, _ = story.combination
    return _chat(rng.choice(REQUESTS).format(person=person, thing=thing), story.text, FACTS_WEIGHT, 1.0)


def _chat(request: str, reply: str, request_weight: float, reply_weight: float) -> Document:
    return [
        Piece(f"<start_of_turn>user\n{request}<end_of_turn>\n<start_of_turn>model\n", request_weight),
        Piece(reply, reply_weight),
        Piece("<end_of_turn>", 1.0),
        EOS_PIECE,
    ]
