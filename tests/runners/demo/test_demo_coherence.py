"""What counts as a story that the world could have told."""

from __future__ import annotations

from itertools import islice

import pytest

from graph_gemma.runners.demo.training.coherence import is_coherent
from graph_gemma.runners.demo.world import held_out_stories, training_stories

STORY = (
    "One day Clara took a red kite to the meadow. She sat in the sun, ate some honey and went home. But at home the "
    'kite was not there. Clara was very sad. "What is wrong?" asked Jack. "I lost my red kite," said Clara. Jack took '
    "her by the hand, and they went back to the meadow together. There they saw a dog, and the dog had the red kite. "
    '"Thank you, Jack!" said Clara. It was a good day.'
)


def test_every_story_of_the_world_is() -> None:
    texts = [*held_out_stories(60), *(story.text for story in islice(training_stories(7), 60))]
    assert all(map(is_coherent, texts))
    assert is_coherent(STORY)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("asked Jack", "asked Clara"),  # the second person is another
        ("She sat", "He sat"),
        ("the red kite.", "the blue kite."),
        ("the dog had", "the cat had"),
        ("back to the meadow", "back to the forest"),
        ("Jack took", "Max took"),
        (" It was a good day.", ""),
        ("very sad", "very"),
    ],
)
def test_one_wrong_word_is_noticed(word: str, other: str) -> None:
    assert word in STORY
    assert not is_coherent(STORY.replace(word, other))
