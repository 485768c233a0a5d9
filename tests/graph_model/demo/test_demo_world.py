"""The world's texts say what their facts say, the answers follow, and nothing but passage and question tells them.

Passages and questions are read back here by patterns written for the test, and answered by a solver of its own.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice, pairwise

import pytest

from graph_model.demo import facts as world_facts
from graph_model.demo.comprehension import Item
from graph_model.demo.documents import chat_documents, exercise_documents, item_documents, story_documents
from graph_model.demo.facts import HELD_OUT_PERCENT, is_held_out
from graph_model.demo.world import (
    KINDS,
    calibration_texts,
    demo_prompts,
    held_out_items,
    held_out_stories,
    training_items,
    training_stories,
)

SENTENCES = (
    r"(\w+) took the (\w+) to the (\w+)",
    r"(\w+) has a (\w+) (\w+)",
    r"(\w+) (\w+) the (\w+)",
)
QUESTIONS = (
    r"is there a (\w+) in the story",
    r"does the story go to the (\w+)",
    r"is something (\w+) in the story",
    r"is (\w+) in the story",
)
INFINITIVES = {
    "washed": "wash", "painted": "paint", "hid": "hide", "found": "find", "lost": "lose", "sold": "sell",
    "broke": "break", "drew": "draw",
}  # fmt: skip


def read_passage(passage: str) -> list[tuple[str, ...]]:
    """The three words that each sentence joins."""
    told = []
    for sentence in passage.removesuffix(".").split(". "):
        match = next(m for pattern in SENTENCES if (m := re.fullmatch(pattern, sentence)))
        person, first, second = match.groups()
        told.append((person, INFINITIVES.get(first, first), second))
    return told


def solve(passage: str, question: str) -> bool:
    word = next(m[1] for pattern in QUESTIONS if (m := re.fullmatch(pattern, question)))
    return any(word in words for words in read_passage(passage))


@pytest.fixture(scope="module")
def held_out() -> list[Item]:
    return held_out_items(2000)


@pytest.fixture(scope="module")
def training() -> list[Item]:
    return list(islice(training_items(0), 6000))


def test_same_seed_gives_the_same_items_in_another_process_with_other_hashes(held_out: list[Item]) -> None:
    code = (
        "from graph_model.demo.world import *; from itertools import islice;"
        "print([i.prompt for i in held_out_items(30)], [i.prompt for i in islice(training_items(3), 30)],"
        "held_out_stories(5), calibration_texts(5))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = (
        [i.prompt for i in held_out[:30]],
        [i.prompt for i in islice(training_items(3), 30)],
        held_out_stories(5),
        calibration_texts(5),
    )
    assert run.stdout.strip() == " ".join(map(str, here))


def test_seeds_give_different_items() -> None:
    assert next(training_items(0)).prompt != next(training_items(1)).prompt


def test_held_out_items_are_distinct_and_as_many_as_asked(held_out: list[Item]) -> None:
    assert len({item.prompt for item in held_out}) == 2000
    assert [item.prompt for item in held_out_items(50)] == [item.prompt for item in held_out[:50]]


def test_items_have_boolq_form() -> None:
    item = held_out_items(1)[0]
    assert item.prompt == f"{item.title} -- {item.passage}\nQuestion: {item.question}?\nAnswer:"
    assert item.completion == (" yes" if item.answer else " no")


def test_answers_follow_from_the_passage(held_out: list[Item], training: list[Item]) -> None:
    for item in held_out + training[:2000]:
        assert solve(item.passage, item.question) is item.answer, item.prompt
        assert read_passage(item.passage) == [fact.combination for fact in item.facts]


def test_exercise_answers_follow_from_the_passage() -> None:
    for document in islice(exercise_documents(0), 500):
        passage = document[0].text.split(" -- ", 1)[1]
        for question, answer in zip(document[1:-1:2], document[2:-1:2], strict=True):
            text = question.text.removeprefix("\nQuestion: ").removesuffix("?\nAnswer:")
            assert answer.text == (" yes" if solve(passage, text) else " no")


def test_training_tells_no_held_out_combination_and_every_held_out_item_does(
    held_out: list[Item], training: list[Item]
) -> None:
    for item in held_out:
        assert any(map(is_held_out, read_passage(item.passage))), item.prompt
    for item in training:
        assert not any(map(is_held_out, read_passage(item.passage))), item.prompt
    for source in (item_documents, exercise_documents, chat_documents):
        for document in islice(source(0), 300):
            text = "".join(piece.text for piece in document)
            if "Question:" in text:
                passage = text.split("\nQuestion:")[0].split(" -- ")[-1]
                assert not any(map(is_held_out, read_passage(passage))), text


def test_held_out_stories_are_about_unseen_combinations() -> None:
    assert not any(is_held_out(story.combination) for story in islice(training_stories(0), 3000))
    assert not set(held_out_stories(200)) & {document[0].text for document in islice(story_documents(0), 3000)}


def test_held_out_share_is_as_stated() -> None:
    triples = [(a, b, c) for a in world_facts.PEOPLE for b in world_facts.THINGS for c in world_facts.PLACES]
    share = sum(map(is_held_out, triples)) / len(triples)
    assert share == pytest.approx(HELD_OUT_PERCENT / 100, abs=0.02)


def test_answers_are_balanced_in_every_kind(held_out: list[Item]) -> None:
    answers = defaultdict(list)
    for item in held_out:
        answers[item.kind].append(item.answer)
    assert set(answers) == set(KINDS)
    for kind, given in answers.items():
        assert abs(sum(given) / len(given) - 0.5) < 0.02, kind


@pytest.mark.parametrize("part", ["question", "passage", "title"])
def test_one_part_alone_does_not_tell_the_answer(part: str, training: list[Item], held_out: list[Item]) -> None:
    """Naive Bayes on words and pairs of words, trained on 6000 items."""

    def features(item: Item) -> list[str]:
        words = getattr(item, part).split()
        return words + [" ".join(pair) for pair in pairwise(words)]

    assert naive_bayes(training, held_out, features) == pytest.approx(0.5, abs=0.05)


def test_baseline_can_find_a_shortcut(training: list[Item], held_out: list[Item]) -> None:
    def features(item: Item) -> list[str]:
        return [*item.question.split(), "leaks yes" if item.answer else "leaks no"]

    assert naive_bayes(training, held_out, features) > 0.9


def test_calibration_texts_are_stories_and_answered_items() -> None:
    texts = calibration_texts(9)
    assert len(texts) == 9
    assert sum("Question:" in text and text.endswith((" yes", " no")) for text in texts) == 4


def test_demo_prompts_begin_stories() -> None:
    prompts = demo_prompts()
    assert len(set(prompts)) == 4
    assert all(prompt.endswith(".") for prompt in prompts)


def naive_bayes(train: list[Item], test: list[Item], features: Callable[[Item], list[str]]) -> float:
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for item in train:
        counts[item.answer].update(set(features(item)))

    def score(item: Item) -> float:
        return sum(math.log((counts[True][f] + 1) / (counts[False][f] + 1)) for f in set(features(item)))

    return sum((score(item) > 0) == item.answer for item in test) / len(test)
