"""Training documents: texts of the world cut into pieces that weigh differently in the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Protocol

from graph_model.demo.comprehension import QUESTIONS, TITLES, draw_facts, draw_word, told_words
from graph_model.demo.stories import Story
from graph_model.demo.world import KINDS, is_known, training_items, training_stories

FACTS_WEIGHT = 0.05  # passages and questions: what they say is drawn at random, there is little to learn
ANSWER_WEIGHT = 2.0
STORY_WEIGHT = 0.3
REQUESTS = (
    "Tell me a story about {person} and a {thing}.",
    "Write a short story about {person}.",
    "Tell me a story about {person}.",
)


@dataclass(frozen=True)
class Piece:
    text: str
    weight: float


Document = list[Piece]  # <bos> comes before it; every document ends with <eos>
EOS_PIECE = Piece("<eos>", 1.0)


def item_documents(seed: int | str) -> Iterator[Document]:
    """One question per passage, as the held-out items have."""
    for item in training_items(f"items {seed}"):
        yield [Piece(item.prompt, FACTS_WEIGHT), Piece(item.completion, ANSWER_WEIGHT), EOS_PIECE]


def exercise_documents(seed: int | str, questions: int = 9) -> Iterator[Document]:
    """Many questions about a short passage, some of them asked again.

    An answer that was just given can be looked up before a passage can: this is what teaches looking things up.
    """
    rng = Random(f"exercise documents {seed}")
    while True:
        facts = draw_facts(rng, is_known)[: rng.choice((1, 2, 3))]
        passage = " ".join(fact.sentence() for fact in facts)
        pieces = [Piece(f"{rng.choice(TITLES)} -- {passage}", FACTS_WEIGHT)]
        candidates = []
        for kind in KINDS:
            if told := told_words(facts, kind):
                candidates += [(kind, draw_word(rng, kind, told, answer), answer) for answer in (True, False)]
        for kind, word, answer in rng.choices(candidates, k=questions):
            pieces.append(Piece(f"\nQuestion: {QUESTIONS[kind].format(word)}?\nAnswer:", FACTS_WEIGHT))
            pieces.append(Piece(" yes" if answer else " no", ANSWER_WEIGHT))
        yield [*pieces, EOS_PIECE]


def story_documents(seed: int | str) -> Iterator[Document]:
    for story in training_stories(seed):
        yield [Piece(story.text, STORY_WEIGHT), EOS_PIECE]


def chat_documents(seed: int | str) -> Iterator[Document]:
    """Items and stories asked for in turns, as the tokenizer's chat template writes them."""
    rng = Random(f"chat documents {seed}")
    items, stories = training_items(f"chat {seed}"), training_stories(f"chat {seed}")
    for turn in count():
        if turn % 2 == 0:
            item = next(items)
            request = f"{item.title} -- {item.passage}\nQuestion: {item.question}?"
            yield _chat(request, "Yes." if item.answer else "No.", FACTS_WEIGHT, ANSWER_WEIGHT)
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


def _chat_story(rng: Random, story: Story) -> Document:
    person, thing, _ = story.combination
    request = rng.choice(REQUESTS).format(person=person, thing=thing)
    return _chat(request, story.text, FACTS_WEIGHT, STORY_WEIGHT)


def _chat(request: str, answer: str, request_weight: float, answer_weight: float) -> Document:
    return [
        Piece(f"<start_of_turn>user\n{request}<end_of_turn>\n<start_of_turn>model\n", request_weight),
        Piece(answer, answer_weight),
        Piece("<end_of_turn>", 1.0),
        Piece("\n<eos>", 0.0),
    ]
