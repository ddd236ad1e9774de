"""Places that have something in common: by kind of token, by place in the text, by side of an equation, by token; and
whole texts, with what they cost.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from blackbox_proxy.analysis.places import Place
from blackbox_proxy.prices import Prices
from blackbox_proxy.types import Usage

LOW = 0.5
"""Covered mass under which a place counts as one where the base showed too little."""

_WINDOW = 20  # tokens over which the acceptance along a text is a mean


@dataclass(frozen=True, slots=True)
class Group:
    """Places that have something in common. changed: the share whose likeliest token is no more the base's; shift and
    distance: means; beyond: the share whose token the base had not shown.
    """

    name: str
    tokens: int
    changed: float
    shift: float
    distance: float
    beyond: float


def group(name: str, places: Iterable[Place]) -> Group:
    """The means over the places that had candidates; nan where there is none."""
    some = [place for place in places if place.chosen is not None]
    if not some:
        return Group(name, 0, math.nan, math.nan, math.nan, math.nan)
    columns = np.array([(place.changed, place.shift, place.distance, place.beyond) for place in some], dtype=float)
    changed, shift, distance, beyond = columns.mean(axis=0).tolist()
    return Group(name, len(some), changed, shift, distance, beyond)


def by_kind(places: Iterable[Place]) -> tuple[Group, ...]:
    """One group for each kind of token that there is, the one whose distribution moves most first."""
    return _grouped(places, lambda place: place.kind)


def by_side(places: Iterable[Place]) -> tuple[Group, ...]:
    """Left and right sides of equations (the paper's section 6.1); empty where the texts have none."""
    named = {"left": "left of =", "right": "right of ="}
    return _grouped(places, lambda place: named.get(place.side, ""))


def by_position(places: Iterable[Place]) -> tuple[Group, ...]:
    """Tokens 1, 2, 3-4, 5-8, 9-16 … of their texts, in this order."""
    buckets: defaultdict[int, list[Place]] = defaultdict(list)
    for place in places:
        buckets[place.index.bit_length()].append(place)
    spans = {bucket: (2 ** (bucket - 1) + 1 if bucket else 1, 2**bucket) for bucket in sorted(buckets)}
    found = (group(f"{a}" if a == b else f"{a}–{b}", buckets[bucket]) for bucket, (a, b) in spans.items())
    return tuple(one for one in found if one.tokens)


def _grouped(places: Iterable[Place], name: Callable[[Place], str]) -> tuple[Group, ...]:
    groups: defaultdict[str, list[Place]] = defaultdict(list)
    for place in places:
        groups[name(place)].append(place)
    found = [group(key, some) for key, some in groups.items() if key]
    return tuple(sorted((one for one in found if one.tokens), key=lambda one: (-one.distance, one.name)))


@dataclass(frozen=True, slots=True)
class Moved:
    """A token and its mean shift wherever it was chosen. context: the bytes before it, and after it, where it occurs
    most (two tokens before, one after).
    """

    token: bytes
    end: bool
    count: int
    shift: float
    changed: float
    context: tuple[bytes, bytes]


def most_moved(texts: Sequence[Sequence[Place]], count: int = 12) -> tuple[Moved, ...]:
    """The tokens whose probability the proxy raised most where they were chosen (the paper's table of tokens most
    influenced by tuning); those that occur at least twice, where there are any.
    """
    found: defaultdict[tuple[bytes, bool], list[tuple[Place, tuple[bytes, bytes]]]] = defaultdict(list)
    for places in texts:
        for i, place in enumerate(places):
            if place.chosen is not None:
                before = b"".join(other.token for other in places[max(0, i - 2) : i])
                after = b"".join(other.token for other in places[i + 1 : i + 2])
                found[place.token, place.end].append((place, (before, after)))
    if any(len(where) > 1 for where in found.values()):
        found = defaultdict(list, {key: where for key, where in found.items() if len(where) > 1})
    moved = []
    for (token, end), where in found.items():
        some = group("", [place for place, _ in where])
        context = Counter(context for _, context in where).most_common(1)[0][0]
        moved.append(Moved(token, end, some.tokens, some.shift, some.changed, context))
    return tuple(sorted(moved, key=lambda one: (-one.shift, one.token))[:count])


# -- whole texts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """All places of some texts. drafted: the share of tokens that stood in a draft; covered_mass: mean; low: places
    where it is under LOW; tail_mass: mean share of p on tokens that the base did not show; cost: None without prices.
    """

    texts: int
    tokens: int
    overall: Group
    drafted: float
    covered_mass: float
    low: int
    tail_mass: float
    usage: Usage
    calls_per_token: float
    cost: float | None


def summarise(texts: Sequence[Sequence[Place]], prices: Prices | None = None) -> Summary:
    """Everything at once; nan where there is no place to measure."""
    places = [place for places in texts for place in places]
    some = [place for place in places if place.chosen is not None]
    usage = sum((place.usage for place in places), Usage())
    covered, tail, drafted = (
        float(np.mean([getattr(place, name) for place in some])) if some else math.nan
        for name in ("covered_mass", "tail_mass", "drafted")
    )
    return Summary(
        texts=len(texts),
        tokens=len(places),
        overall=group("all tokens", some),
        drafted=drafted,
        covered_mass=covered,
        low=sum(place.covered_mass < LOW for place in some),
        tail_mass=tail,
        usage=usage,
        calls_per_token=usage.api_calls / max(len(places), 1),
        cost=None if prices is None else prices.cost(usage),
    )


@dataclass(frozen=True, slots=True)
class Course:
    """What is spent and accepted along a text; one entry per step. calls, cost: up to and with that token (cost empty
    without prices). accepted: the share of the last 20 tokens that stood in a draft.
    """

    calls: tuple[int, ...]
    cost: tuple[float, ...]
    accepted: tuple[float, ...]


def course(places: Sequence[Place], prices: Prices | None = None) -> Course:
    calls = np.cumsum([place.usage.api_calls for place in places], dtype=int).tolist()
    cost = np.cumsum([prices.cost(place.usage) for place in places]).tolist() if prices is not None else []
    drafted = [place.drafted for place in places]
    windows = (drafted[max(0, i + 1 - _WINDOW) : i + 1] for i in range(len(drafted)))
    return Course(tuple(calls), tuple(cost), tuple(sum(window) / len(window) for window in windows))
