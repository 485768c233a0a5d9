"""Short stories of the tiny world: two children, one thing, a few places, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from graph_gemma.runners.demo.facts import BOYS, COLOURS, PEOPLE, PLACES, THINGS, Combination

ANIMALS = ("dog", "cat", "horse", "duck", "rabbit", "goat", "hen", "mouse")
FOODS = ("bread", "cake", "soup", "honey", "cheese", "milk")
MORNINGS = ("One morning", "One day", "One afternoon", "On a {weather} day", "Early in the morning")
WEATHER = ("sunny", "rainy", "cold", "warm", "windy")
ENDINGS = (
    "They went home and were very happy.",
    "In the evening they went home together.",
    "It was a good day.",
    "From that day on they were good friends.",
    "They laughed and had some {food}.",
    "That night {a} slept very well.",
    "{b} smiled, and {a} smiled too.",
)


@dataclass(frozen=True)
class Story:
    text: str
    person: str  # whom the story is about
    thing: str
    combinations: tuple[Combination, ...]  # every person with the things and places; the first is what it is about
    words: tuple[str, ...]  # that were drawn for it: persons, thing, places, colour, animal, food, weather


Plot = list[tuple[str, ...]]  # a sentence a step, in one of several wordings


def draw_story(rng: Random, allowed: Callable[[tuple[Combination, ...]], bool]) -> Story:
    """A story whose combinations are allowed."""
    while True:
        a, b = rng.sample(PEOPLE, 2)
        thing = rng.choice(THINGS)
        place, other_place = rng.sample(PLACES, 2)
        combinations = tuple((person, word) for person in (a, b) for word in (thing, place, other_place))
        if allowed(combinations):
            break
    drawn = {
        "a": a,
        "b": b,
        "thing": thing,
        "place": place,
        "other_place": other_place,
        "colour": rng.choice(COLOURS),
        "animal": rng.choice(ANIMALS),
        "food": rng.choice(FOODS),
        "weather": rng.choice(WEATHER),
    }
    slots = drawn | pronouns("a", a) | pronouns("b", b)
    steps = [*rng.choice(PLOTS), ENDINGS]
    sentences = [rng.choice(step) for step in steps]
    sentences[0] = f"{rng.choice(MORNINGS)} {sentences[0]}"
    return Story(" ".join(sentences).format(**slots), a, thing, combinations, tuple(drawn.values()))


def pronouns(role: str, name: str) -> dict[str, str]:
    words = ("he", "him", "his") if name in BOYS else ("she", "her", "her")
    small = {f"{role}_{slot}": word for slot, word in zip(("he", "him", "his"), words, strict=True)}
    large = {f"{role}_{slot}": word.capitalize() for slot, word in zip(("He", "Him", "His"), words, strict=True)}
    return small | large


LOST: Plot = [
    ("{a} went to the {place} with a {colour} {thing}.", "{a} took a {colour} {thing} to the {place}."),
    (
        "{a_He} played there for a long time and then went home.",
        "{a_He} sat in the sun, ate some {food} and went home.",
    ),
    ("At home {a_he} could not find the {thing}.", "But at home the {thing} was not there."),
    ("{a} was very sad.", "{a} began to cry."),
    ('"What is wrong?" asked {b}.', '"Why are you so sad?" asked {b}.'),
    ('"I lost my {colour} {thing}," said {a}.', '"I can not find my {thing}," said {a}.'),
    (
        '"I will help you," said {b}, and they went back to the {place}.',
        "{b} took {a_him} by the hand, and they went back to the {place} together.",
    ),
    (
        "There was the {colour} {thing}, under a tree.",
        "There they saw a {animal}, and the {animal} had the {colour} {thing}.",
        "They looked for a long time, and then {b} found the {thing}.",
    ),
    ('"Thank you, {b}!" said {a}.', "{a} was so happy that {a_he} began to sing."),
]

SHARING: Plot = [
    ("{a} was in the {place}.", "{a} was alone in the {place}."),
    ("{a_He} had a new {thing}.", "{a_He} had a {colour} {thing}.", "{a_His} {thing} was {colour} and new."),
    ("{b} came to the {place} too.", "Then {b} came and saw the {thing}."),
    ('"May I have the {thing} for a while?" asked {b}.', '"May I play with your {thing}?" asked {b}.'),
    (
        '"No, it is mine," said {a}, and {b} went away.',
        '"No," said {a}. "You will break it." {b} went away.',
    ),
    ("But it was no fun to play alone.", "Then {a} was sad, because {a_he} was all alone."),
    ("{a} went to the {other_place} to look for {b}.", "{a} found {b} in the {other_place}."),
    (
        '"I am sorry," said {a_he}, and gave {b_him} the {thing}.',
        '"Let us play together," said {a_he}, and {b} took the {thing}.',
    ),
    ("Then they played all day.", "They played with the {thing} until it was dark."),
]

GIFT: Plot = [
    ("{a} wanted to give {b} a gift.", "{a} thought about {b}, who was ill."),
    ("{a_He} went to the {place} and found a {thing}.", "In the {place} {a_he} found an old {thing}."),
    ("The {thing} was old and dirty, so {a_he} washed it.", "{a_He} washed the {thing} and painted it {colour}."),
    ("Now it was a beautiful {thing}.", "Now the {thing} looked like new."),
    ("{a} put it in a bag and went to {b}.", "Then {a} took it to the house of {b}."),
    ('"This is for you," said {a}.', '"I have a gift for you," said {a}.'),
    ("{b} opened the bag and saw the {thing}.", "{b} looked at the {colour} {thing}."),
    ('"It is beautiful!" said {b}.', '"Thank you, {a}! I like it very much," said {b}.'),
]

ANIMAL: Plot = [
    ("{a} and {b} were in the {place}.", "{a} and {b} walked to the {place}."),
    ("There they heard a small sound.", "A small sound came from behind a tree."),
    ("It was a little {animal}.", "It was a {animal}, and it was very small."),
    ("The {animal} was cold and hungry.", "The {animal} was all alone and afraid."),
    ('"We must help it," said {a}.', '"Let us help the {animal}," said {a}.'),
    (
        "{b} gave the {animal} some {food}, and {a} put it in {a_his} {thing}.",
        "{a} took {a_his} {colour} {thing} and made a bed for the {animal}.",
        "{a} gave the {animal} {a_his} {thing} to play with.",
    ),
    ("Then they took the {animal} to the {other_place}.", "They carried it to the {other_place}, where it was warm."),
    (
        "Soon the {animal} was warm and began to run around.",
        "The {animal} ate some {food} and was not afraid any more.",
    ),
]

RAIN: Plot = [
    ("{a} and {b} played with a {thing} in the {place}.", "{a} was in the {place} with {b} and a {colour} {thing}."),
    ("Then it began to rain.", "Soon the sky was dark, and it began to rain."),
    ('"Run!" said {b}.', '"We must go!" said {b}.'),
    ("They ran to the {other_place}.", "They ran as fast as they could to the {other_place}."),
    ("But {a} had left the {thing} in the {place}.", "There {a} saw that the {thing} was not with them."),
    ("{a} ran back into the rain to get it.", "So {a_he} went back to the {place} to get it."),
    (
        "{a_He} came back with the {thing}, and {a_he} was very wet.",
        "{a_He} was wet and cold, but {a_he} had the {thing}.",
    ),
    ("{b} gave {a_him} some warm {food}.", "{b} made a fire, and soon {a} was warm."),
]

PLOTS: tuple[Plot, ...] = (LOST, SHARING, GIFT, ANIMAL, RAIN)
