"""Training documents: texts of the world cut into pieces that weigh differently in the loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Protocol

from graph_gemma.runners.demo.comprehension import TITLES, draw_facts, draw_word, tell
from graph_gemma.runners.demo.facts import KINDS, PEOPLE
from graph_gemma.runners.demo.stories import Story
from graph_gemma.runners.demo.world import is_known, training_items, training_stories

FACTS_WEIGHT = 0.05  # passages and questions: what they say is drawn at random, there is little to learn
ANSWER_WEIGHT = 2.0
STORY_WEIGHT = 0.3
KEPT_WEIGHT = 2.0  # what a story must keep to: its words from their second time on, and that a new person is another
QUESTIONS_PER_EXERCISE = 8
SHARE_OF_OPEN_QUESTIONS = 0.25
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


def first_exercise_documents(seed: int | str) -> Iterator[Document]:
    """Exercises on very short passages, which come first."""
    return _exercises(f"first {seed}", (1, 1, 2))


def exercise_documents(seed: int | str) -> Iterator[Document]:
    """Exercises on passages as long as those of the items."""
    return _exercises(str(seed), (2, 3))


def story_documents(seed: int | str) -> Iterator[Document]:
    for story in training_stories(seed):
        yield [*_story_pieces(story, story.text), EOS_PIECE]


def chat_documents(seed: int | str) -> Iterator[Document]:
    """Items and stories asked for in turns, as the tokenizer's chat template writes them."""
    rng = Random(f"chat documents {seed}")
    items, stories = training_items(f"chat {seed}"), training_stories(f"chat {seed}")
    for turn in count():
        if turn % 2 == 0:
            item = next(items)
            request = f"{item.title} -- {item.passage}\nQuestion: {item.question}?"
            yield _chat(request, [Piece("Yes." if item.answer else "No.", ANSWER_WEIGHT)])
        else:
            yield _chat_story(rng, next(stories))


class Source(Protocol):
    """Documents without end, by seed."""

    def __call__(self, seed: int | str) -> Iterator[Document]: ...


def mixed_documents(sources: Sequence[tuple[float, Source]], seed: int | str) -> Iterator[Document]:
    """Documents of several sources, each with a share of the draws."""
    rng = Random(f"mixed documents {seed}")
    weights = [share for share, _ in sources]
    streams = [make(seed) for _, make in sources]
    while True:
        yield next(rng.choices(streams, weights)[0])


def _exercises(seed: str, fact_counts: Sequence[int]) -> Iterator[Document]:
    """Many questions about a short passage, some asked again, some open: where, what.

    An open question's answer is a word of the passage: that teaches to look words up, which a bit per question does
    not. An answer given before can be looked up before a passage can.
    """
    rng = Random(f"exercise documents {seed}")
    while True:
        facts = draw_facts(rng, rng.choice(fact_counts), is_known)
        pieces = [Piece(f"{rng.choice(TITLES)} -- {tell(facts)}", FACTS_WEIGHT)]
        for _ in range(QUESTIONS_PER_EXERCISE):
            about = rng.choice(facts)
            kind = KINDS[about.kind]
            if rng.random() < SHARE_OF_OPEN_QUESTIONS:
                question, answer = kind.open_question.format(about.person), about.word
            else:
                says_yes = rng.random() < 0.5
                question = kind.question.format(about.person, draw_word(rng, about, says_yes, is_known))
                answer = "yes" if says_yes else "no"
            pieces.append(Piece(f"\nQuestion: {question}?\nAnswer:", FACTS_WEIGHT))
            pieces.append(Piece(f" {answer}", ANSWER_WEIGHT))
        yield [*pieces, EOS_PIECE]


def _chat_story(rng: Random, story: Story) -> Document:
    request = rng.choice(REQUESTS).format(person=story.person, thing=story.thing)
    return _chat(request, _story_pieces(story, story.text, request))


def _story_pieces(story: Story, text: str, before: str = "") -> list[Piece]:
    """The text, cut around persons but the first, and words drawn for the story that came before, also in `before`."""
    known = set(re.findall(r"\w+", before))
    pieces: list[Piece] = []
    begin = 0
    for match in re.finditer(rf" (?:{'|'.join(story.words)})\b", text):
        word = match[0][1:]
        if word in known or (word in PEOPLE and story.person in known):
            pieces += [Piece(text[begin : match.start()], STORY_WEIGHT), Piece(match[0], KEPT_WEIGHT)]
            begin = match.end()
        known.add(word)
    return [piece for piece in [*pieces, Piece(text[begin:], STORY_WEIGHT)] if piece.text]


def _chat(request: str, answer: list[Piece]) -> Document:
    return [
        Piece(f"<start_of_turn>user\n{request}<end_of_turn>\n<start_of_turn>model\n", FACTS_WEIGHT),
        *answer,
        Piece("<end_of_turn>", 1.0),
        Piece("\n<eos>", 0.0),
    ]
