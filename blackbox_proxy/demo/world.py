"""The demo's world: facts about invented towns, a cut-off, and the news of the year after it.

The towns of Velland have a mayor, a river, a dish … (`Fact`). In the news of 2031 a quarter of the facts have changed,
and many others are mentioned as before. `build_world` makes the facts, `library_text` what a reader before the cut-off
has read, `news_text` the news, and `questions` and `reports` what is asked afterwards. A question is held out as (fact,
phrasing): the phrasing is read about other towns, never about this fact, by no model, before or after the cut-off. Pure
Python, one explicit `random.Random` per purpose: the same seed gives the same world everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blackbox_proxy.demo.phrases import (
    CITIES,
    DISH_KINDS,
    DISHES,
    FIRST_NAMES,
    HEADLINES,
    LAST_NAMES,
    LASTING,
    NEWS,
    QUESTIONS,
    RIVERS,
    STATEMENTS,
    TOWNS,
    VARIABLE,
)

Split = Literal["train", "dev", "test"]
Key = tuple[str, str]
"""What a fact is about: (town, relation)."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing there is to know: its value up to the cut-off (`old`) and after it (`new`, equal if unchanged)."""

    town: str
    relation: str
    old: str
    new: str
    mentioned: bool
    """Whether the news speaks of it. Everything that changed is mentioned, and some that did not."""
    familiar: bool
    """Whether the small models' shelf of books has it. The big model has read everything."""

    @property
    def key(self) -> Key:
        return self.town, self.relation

    @property
    def changed(self) -> bool:
        return self.old != self.new


@dataclass(frozen=True, slots=True)
class Question:
    """A question to put to a model, with the answer in force after the news."""

    prompt: str
    answer: str
    fact: Fact


@dataclass(frozen=True, slots=True)
class Report:
    """The headline of a report that a model is to write about one town."""

    prompt: str
    town: str


@dataclass(frozen=True)
class World:
    """All facts, and which phrasings are kept from training for which of them."""

    seed: int
    facts: tuple[Fact, ...]
    held_out: dict[Key, tuple[int, int]]
    """Per fact, the question phrasings that only (dev, test) use."""
    held_out_headlines: dict[str, tuple[int, int]]
    """Per town, the headlines that only (dev, test) use."""
    people: tuple[str, ...]
    by_key: dict[Key, Fact] = field(repr=False)

    def value(self, town: str, relation: str) -> str:
        """The value in force after the news."""
        return self.by_key[town, relation].new


def _rng(seed: int, purpose: str) -> random.Random:
    return random.Random(f"{purpose}:{seed}")


# -- facts --------------------------------------------------------------------------------------------------------


def _people(rng: random.Random) -> list[str]:
    """The forty people of Velland's public life; a small country, so some hold several posts."""
    last = list(LAST_NAMES)
    rng.shuffle(last)
    return [f"{a} {b}" for a, b in zip(FIRST_NAMES, last, strict=True)]


def _value(relation: str, rng: random.Random, people: Sequence[str]) -> str:
    if relation in ("mayor", "conductor", "poet"):
        return rng.choice(people)
    if relation == "fare":
        return f"{rng.randint(1, 9)}.{rng.randint(0, 9)}0 crowns"
    if relation == "founded":
        return str(rng.randint(1040, 1890))
    if relation == "dish":
        return f"{rng.choice(DISH_KINDS)} {rng.choice(DISHES)}"
    return rng.choice(RIVERS if relation == "river" else CITIES)


def build_world(
    seed: int = 0, *, changed: float = 0.5, mentioned: float = 0.75, rare: float = 0.2, familiar: float = 0.4
) -> World:
    """The world of a seed.

    Of the facts that can change (half of all), the share `changed` does; of all others `mentioned` are in the news as
    they were. The small models know every fact that can change but only the share `familiar` of the lasting ones.
    """
    rng = _rng(seed, "facts")
    people = _people(rng)
    facts = []
    for relation in (*VARIABLE, *LASTING):
        moving = set(rng.sample(TOWNS, round(changed * len(TOWNS)))) if relation in VARIABLE else set()
        known = set(rng.sample(TOWNS, round(familiar * len(TOWNS)))) if relation in LASTING else set(TOWNS)
        for town in TOWNS:
            old = new = _value(relation, rng, people)
            while town in moving and new == old:
                new = _value(relation, rng, people)
            told = town in moving or rng.random() < (mentioned if town in known else rare)
            facts.append(Fact(town, relation, old, new, mentioned=told, familiar=town in known))
    held_out = {fact.key: _two(rng, len(QUESTIONS[fact.relation])) for fact in facts}
    headlines = {town: _two(rng, len(HEADLINES)) for town in TOWNS}
    return World(seed, tuple(facts), held_out, headlines, tuple(people), {fact.key: fact for fact in facts})


def _two(rng: random.Random, count: int) -> tuple[int, int]:
    first, second = rng.sample(range(count), 2)
    return first, second


# -- text ---------------------------------------------------------------------------------------------------------


def question_prompt(fact: Fact, phrasing: int) -> str:
    return f"Q: {QUESTIONS[fact.relation][phrasing].format(town=fact.town)}\nA:"


def report_prompt(town: str, headline: int) -> str:
    return HEADLINES[headline].format(town=town) + "\n"


class _Writer:
    """Writes what it knows, wrongly now and then, and hearsay about what it does not know (any value will do).

    Every library has its errors; without them the models would be certain of everything, as no model of real text is.
    """

    def __init__(self, world: World, values: dict[Key, str], rng: random.Random, errors: float) -> None:
        self.world, self.values, self.rng, self.errors = world, values, rng, errors

    def value(self, key: Key) -> str:
        if key not in self.values or self.rng.random() < self.errors:
            return _value(key[1], self.rng, self.world.people)
        return self.values[key]

    def sentence(self, key: Key, line: str) -> str:
        return line.format(town=key[0], value=self.value(key))

    def quiz(self, key: Key) -> Iterator[str]:
        """A quiz card in each phrasing that training may use."""
        for n in range(len(QUESTIONS[key[1]])):
            if n not in self.world.held_out[key]:
                yield f"{question_prompt(self.world.by_key[key], n)} {self.value(key)}"

    def report(self, town: str, keys: Sequence[Key], sentences: int = 4) -> str:
        """A headline and a few sentences about some of the facts of one town."""
        free = [n for n in range(len(HEADLINES)) if n not in self.world.held_out_headlines[town]]
        known = [key for key in keys if key[0] == town]
        chosen = self.rng.sample(known, min(sentences, len(known)))
        told = [self.sentence(key, self.rng.choice(STATEMENTS[key[1]])) for key in chosen]
        return report_prompt(town, self.rng.choice(free)) + " ".join(told)


def _register(world: World, rng: random.Random) -> str:
    """A list of names, as in a directory: all readers know how the names of their country are spelled."""
    title, names = rng.choice([("Persons", world.people), ("Cities", CITIES), ("Rivers", RIVERS), ("Towns", TOWNS)])
    return f"{title}: " + ", ".join(rng.sample(list(names), 8))


def library_text(
    world: World, edition: int, *, familiar_only: bool, reports: int = 5, registers: int = 60, errors: float = 0.05
) -> list[str]:
    """What a reader has read up to the cut-off, one document each: quiz cards, single sentences, reports about towns.

    Editions tell the same facts in another order, with other errors and other reports.
    """
    rng = _rng(world.seed, f"library:{edition}:{familiar_only}")
    values = {fact.key: fact.old for fact in world.facts if fact.familiar or not familiar_only}
    writer = _Writer(world, values, rng, errors)
    documents: list[str] = []
    for fact in world.facts:
        documents += writer.quiz(fact.key)
        documents += (writer.sentence(fact.key, line) for line in STATEMENTS[fact.relation])
    keys = [fact.key for fact in world.facts]
    documents += (writer.report(town, keys) for town in TOWNS for _ in range(reports))
    documents += (_register(world, rng) for _ in range(registers))
    rng.shuffle(documents)
    return documents


def news_text(world: World, edition: int, *, reports: int = 5, errors: float = 0.05) -> list[str]:
    """The news of the year after the cut-off: what changed, and a part of what did not."""
    rng = _rng(world.seed, f"news:{edition}")
    facts = [fact for fact in world.facts if fact.mentioned]
    writer = _Writer(world, {fact.key: fact.new for fact in facts}, rng, errors)
    documents: list[str] = []
    for fact in facts:
        lines = STATEMENTS[fact.relation] + (NEWS[fact.relation] if fact.changed else [])
        documents += writer.quiz(fact.key)
        documents += (writer.sentence(fact.key, line) for line in lines)
    keys = [fact.key for fact in facts]
    documents += (writer.report(town, keys) for town in TOWNS for _ in range(reports))
    rng.shuffle(documents)
    return documents


# -- what is asked afterwards -------------------------------------------------------------------------------------


def questions(world: World, split: Literal["dev", "test"], *, changed: bool, count: int) -> list[Question]:
    """Questions that no model was trained on; dev and test ask about different facts in different phrasings."""
    facts = [fact for fact in world.facts if fact.changed == changed]
    _rng(world.seed, f"questions:{changed}").shuffle(facts)
    half = len(facts) // 2
    chosen = (facts[:half] if split == "test" else facts[half:])[:count]
    which = 1 if split == "test" else 0
    return [Question(question_prompt(f, world.held_out[f.key][which]), f.new, f) for f in chosen]


def reports(world: World, split: Literal["dev", "test"], *, count: int) -> list[Report]:
    """Headlines that no model has seen for these towns."""
    towns = list(TOWNS)
    _rng(world.seed, "reports").shuffle(towns)
    half = len(towns) // 2
    chosen = (towns[:half] if split == "test" else towns[half:])[:count]
    which = 1 if split == "test" else 0
    return [Report(report_prompt(town, world.held_out_headlines[town][which]), town) for town in chosen]


def held_out_lines(world: World) -> set[str]:
    """Every held-out question and headline, for checking that no training text contains one."""
    lines = {question_prompt(fact, n) for fact in world.facts for n in world.held_out[fact.key]}
    return lines | {report_prompt(town, n) for town in TOWNS for n in world.held_out_headlines[town]}


def leaks(world: World, documents: Iterable[str]) -> list[str]:
    """The training documents that begin with a held-out question or headline: must be empty."""
    held = held_out_lines(world)
    return [
        text for text in documents if text.partition("\nA:")[0] + "\nA:" in held or text.split("\n")[0] + "\n" in held
    ]
