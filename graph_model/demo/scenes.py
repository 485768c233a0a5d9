"""Scenes: a few facts of the world, the sentences that tell them and the questions that they answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from random import Random

from graph_model.demo.facts import (
    COLOURS,
    DEEDS,
    PEOPLE,
    PLACES,
    QUALITIES,
    THINGS,
    Before,
    Carried,
    Combination,
    Did,
    Fact,
    Gave,
    Had,
    Has,
    More,
    Owns,
    PersonIn,
    Query,
    ThingIn,
    Visited,
    fact_combination,
    unordered,
)


@dataclass(frozen=True)
class Question:
    """A question that a scene allows, its answer, and the open question that has this query as its answer."""

    query: Query
    answer: bool
    combination: Combination
    wordings: tuple[str, ...]
    open_question: str | None = None
    open_answer: str = ""


@dataclass(frozen=True)
class Scene:
    facts: tuple[Fact, ...]
    sentences: tuple[str, ...]
    title: str
    questions: tuple[Question, ...]

    def passage(self) -> str:
        return " ".join(self.sentences)

    def combinations(self) -> list[Combination]:
        """The combinations that the passage tells."""
        return [c for c in map(fact_combination, self.facts) if c is not None]


def carrying_scene(rng: Random) -> Scene:
    """People take things to places; the last place counts."""
    people = rng.sample(PEOPLE, 2)
    things = rng.sample(THINGS, rng.choice((2, 3)))
    places = rng.sample(PLACES, 3)
    facts: list[Carried] = []
    where: dict[str, Carried] = {}  # the last fact about each person and thing
    for _ in range(rng.choice((2, 3, 3, 4))):
        fact = Carried(rng.choice(people), rng.choice(things), rng.choice(places))
        while any(name in where and where[name].place == fact.place for name in (fact.person, fact.thing)):
            fact = Carried(rng.choice(people), rng.choice(things), rng.choice(places))
        facts.append(fact)
        where[fact.person] = where[fact.thing] = fact
    told_places = sorted({fact.place for fact in facts})
    questions = []
    for name, last in where.items():
        is_person = name in people
        for place in told_places:
            query: Query = PersonIn(name, place) if is_person else ThingIn(name, place)
            subject = name if is_person else f"the {name}"
            combination = (last.person, last.thing, place)
            wordings: tuple[str, ...] = (f"is {subject} in the {place}", f"is {subject} in the {place} now")
            yes = place == last.place
            questions.append(Question(query, yes, combination, wordings, f"where is {subject}", f"in the {last.place}"))
    told_people, told_things = ({f.person for f in facts}, {f.thing for f in facts})
    for person in sorted(told_people):
        for thing in sorted(told_things):
            for place in told_places:
                carried = Carried(person, thing, place)
                wordings = (f"did {person} take the {thing} to the {place}",)
                yes = carried in facts
                questions.append(Question(carried, yes, (person, thing, place), wordings))
    forms = ("{0} took the {1} to the {2}.", "{0} carried the {1} to the {2}.", "{0} went to the {2} with the {1}.")
    sentences = [rng.choice(forms).format(f.person, f.thing, f.place) for f in facts]
    return _scene(rng, facts, sentences, questions, sorted(told_people), sorted(told_things))


def giving_scene(rng: Random) -> Scene:
    """Things pass from hand to hand; the last receiver has them."""
    people = rng.sample(PEOPLE, 3)
    things = rng.sample(THINGS, rng.choice((1, 2)))
    holder = {thing: rng.choice(people) for thing in things}
    facts: list[Fact] = [Had(holder[thing], thing) for thing in things]
    last: dict[str, Gave] = {}
    gifts = list(things) + ([rng.choice(things)] if rng.random() < 0.5 else [])
    rng.shuffle(gifts)
    for thing in gifts:
        gave = Gave(holder[thing], thing, rng.choice([p for p in people if p != holder[thing]]))
        facts.append(gave)
        holder[thing] = gave.receiver
        last[thing] = gave
    holders = {fact.person for fact in facts if isinstance(fact, Had)}
    told = sorted(holders | {fact.receiver for fact in facts if isinstance(fact, Gave)})
    questions = []
    for thing in things:
        for person in told:
            wordings = (f"does {person} have the {thing}", f"does {person} have the {thing} now")
            questions.append(
                Question(
                    Has(person, thing),
                    holder[thing] == person,
                    (last[thing].giver, thing, person),
                    wordings,
                    f"who has the {thing}",
                    holder[thing],
                )
            )
        for giver, receiver in permutations(told, 2):
            query = Gave(giver, thing, receiver)
            wordings = (
                f"did {giver} give the {thing} to {receiver}",
                f"did {receiver} get the {thing} from {giver}",
            )
            questions.append(Question(query, query in facts, (giver, thing, receiver), wordings))
    sentences = []
    for fact in facts:
        if isinstance(fact, Had):
            sentences.append(rng.choice(("{0} had a {1}.", "{0} found a {1}.")).format(fact.person, fact.thing))
        elif isinstance(fact, Gave):
            forms = ("{0} gave the {1} to {2}.", "{0} handed the {1} to {2}.", "{2} got the {1} from {0}.")
            sentences.append(rng.choice(forms).format(fact.giver, fact.thing, fact.receiver))
    return _scene(rng, facts, sentences, questions, told, things)


def owning_scene(rng: Random) -> Scene:
    """People have things of different colours."""
    people = rng.sample(PEOPLE, rng.choice((2, 3)))
    sorts = rng.sample(THINGS, 2)
    colours = rng.sample(COLOURS, len(people))
    facts = [Owns(p, c, rng.choice(sorts)) for p, c in zip(people, colours, strict=True)]
    questions = []
    for fact in facts:
        for colour in colours:
            owns = Owns(fact.person, colour, fact.thing)
            wordings = (
                f"is {fact.person}'s {fact.thing} {colour}",
                f"does {fact.person} have a {colour} {fact.thing}",
            )
            combination = (fact.person, colour, fact.thing)
            questions.append(
                Question(
                    owns,
                    colour == fact.colour,
                    combination,
                    wordings,
                    f"what colour is {fact.person}'s {fact.thing}",
                    fact.colour,
                )
            )
    forms = ("{0} has a {1} {2}.", "{0}'s {2} is {1}.", "The {1} {2} is {0}'s.")
    sentences = [rng.choice(forms).format(f.person, f.colour, f.thing) for f in facts]
    return _scene(rng, facts, sentences, questions, people, sorted({f.thing for f in facts}))


def doing_scene(rng: Random) -> Scene:
    """What people did and, said outright, what they did not do."""
    people = rng.sample(PEOPLE, 2)
    things = rng.sample(THINGS, 2)
    deeds = rng.sample(sorted(DEEDS), 2)
    facts = []
    sentences = []
    if rng.random() < 0.3:  # one sentence about both people
        deed, thing, done = deeds[0], things[0], rng.random() < 0.5
        facts += [Did(people[0], deed, thing, done), Did(people[1], deed, thing, not done)]
        first = f"{people[0]} {DEEDS[deed]}" if done else f"{people[0]} did not {deed}"
        sentences.append(f"{first} the {thing}, but {people[1]} {'did not' if done else 'did'}.")
    triples = [(p, d, t) for p in people for d in deeds for t in things]
    rng.shuffle(triples)
    for person, deed, thing in triples:
        if len(facts) >= 3:
            break
        if any((f.person, f.deed, f.thing) == (person, deed, thing) for f in facts):
            continue
        done = rng.random() < 0.5
        facts.append(Did(person, deed, thing, done))
        action = DEEDS[deed] if done else f"did not {deed}"
        sentences.append(f"{person} {action} the {thing}.")
    questions = []
    for f in facts:
        combination = (f.person, f.deed, f.thing)
        wordings = (
            f"did {f.person} {f.deed} the {f.thing}",
            f"is it true that {f.person} {DEEDS[f.deed]} the {f.thing}",
        )
        questions.append(Question(Did(*combination), f.done, combination, wordings))
    return _scene(rng, facts, sentences, questions, people, sorted({f.thing for f in facts}))


def comparing_scene(rng: Random) -> Scene:
    """Three people in a row; what lies between follows from two sentences."""
    chain = rng.sample(PEOPLE, 3)
    quality = rng.choice(sorted(QUALITIES))
    converse = QUALITIES[quality]
    facts = [More(chain[0], quality, chain[1]), More(chain[1], quality, chain[2])]
    rng.shuffle(facts)
    sentences = []
    for f in facts:
        if rng.random() < 0.5:
            sentences.append(f"{f.person} is {quality} than {f.other}.")
        else:
            sentences.append(f"{f.other} is {converse} than {f.person}.")
    questions = []
    for more, less in combinations(chain, 2):
        combination = unordered(more, quality, less)
        pair = f"{min(more, less)} or {max(more, less)}"
        open_question = f"who is {quality}, {pair}"
        for first, second in ((more, less), (less, more)):
            wordings = (f"is {first} {quality} than {second}", f"is {second} {converse} than {first}")
            query = More(first, quality, second)
            questions.append(Question(query, first == more, combination, wordings, open_question, more))
    return _scene(rng, facts, sentences, questions, chain, [])


def visiting_scene(rng: Random) -> Scene:
    """One person goes from place to place; asked is what came first."""
    person = rng.choice(PEOPLE)
    places = rng.sample(PLACES, rng.choice((2, 3, 3)))
    facts = [Visited(person, place) for place in places]
    sentences: list[str] = []
    for place in places:
        openings = ("Then ", "After that ") if sentences else ("", "First ")
        sentences.append(f"{rng.choice(openings)}{person} went to the {place}.")
    questions = []
    for first, second in combinations(places, 2):
        for early, late in ((first, second), (second, first)):
            wordings = (
                f"did {person} go to the {early} before the {late}",
                f"did {person} go to the {late} after the {early}",
            )
            query = Before(person, early, late)
            questions.append(Question(query, early == first, unordered(first, person, second), wordings))
    return _scene(rng, facts, sentences, questions, [person], [])


def _scene(
    rng: Random,
    facts: list,
    sentences: list[str],
    questions: list[Question],
    people: list[str],
    things: list[str],
) -> Scene:
    """Add a title and, now and then, a sentence that has nothing to do with the questions."""
    if rng.random() < 0.3:
        day = rng.choice(("sunny", "rainy", "cold", "warm", "windy"))
        sentences = [f"It was a {day} day.", *sentences]
    titles = ["A busy day", "In the village", people[0], " and ".join(rng.sample(people, min(2, len(people))))]
    if things:
        titles.append(f"The {things[0]}")
    return Scene(tuple(facts), tuple(sentences), rng.choice(titles), tuple(questions))
