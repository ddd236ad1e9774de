"""Questions, and the loss of weights over many of them: -log of what the options' p gives to the right ones, nats.

    s(option)  =  sum over its tokens  log p(token | what is before it; w)  /  its length
    loss(w)    =  sum over questions  m * ( log sum over options exp s  -  log sum over right ones exp s )

Each token has candidates of its own, and one row for everything that is on no list, as `choose` scores it. Where one
token decides, the sum has one summand, and log p is over the forms of all options. m: how often a question counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.calibration.likelihood import Terms, means, moments
from blackbox_proxy.calibration.places import Place, Places, rest_terms
from blackbox_proxy.decoding.whole_vocabulary import log_share, of_nothing
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.weights import Spread
from blackbox_proxy.protocols import Pair
from blackbox_proxy.types import Floats, TailPolicy


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """One token of an option. place: its candidates, of which those are right that are this token, or are forms of the
    option. log_q: the token's own, where everything that is on no list is an event, too; else None.
    """

    place: Place
    log_q: float | None = None

    @property
    def possible(self) -> bool:
        """Whether it has any mass."""
        return self.place.listed if self.log_q is None else bool(np.isfinite(self.log_q))


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """spots: its tokens. size: what its log p is divided by. plain: log p, so divided, under plain proxy-tuning at each
    of `ALPHAS`, (a,) nats, as `choose` has it; log_expert: the same of the first expert alone.
    """

    spots: Sequence[Spot]
    size: int
    right: bool
    plain: Floats
    log_expert: float

    @property
    def possible(self) -> bool:
        """Whether it has any mass."""
        return all(spot.possible for spot in self.spots)


@dataclass(frozen=True)
class Choices:
    """All options of all questions. tokens: those that weights can change, each a place of this table, with as many
    columns as there are weights, the last of them for what is on no list; options (t,): which option each is of.
    fixed (o,): nats that no weight changes; sizes (o,). questions: the options of each; right (o,).
    documents (q,): which each question is. plain (q, a), expert (q,): the losses of plain proxy-tuning, and of the
    first expert alone.
    """

    tokens: Terms
    options: NDArray[np.intp]
    fixed: Floats
    sizes: Floats
    questions: Parts
    right: NDArray[np.bool_]
    documents: NDArray[np.intp]
    plain: Floats
    expert: Floats

    @property
    def count(self) -> int:
        """Questions."""
        return len(self.documents)

    @cached_property
    def _right_parts(self) -> Parts:
        return self.questions.only(self.right)

    def only(self, documents: Sequence[int]) -> Choices:
        """The questions of some documents."""
        kept = np.isin(self.documents, documents)
        options = self.questions.each(kept)
        tokens = self.tokens.only(np.flatnonzero(kept).tolist())
        return Choices(
            replace(tokens, documents=_numbers(kept)[tokens.documents]),
            _numbers(options)[self.options[options[self.options]]],
            self.fixed[options],
            self.sizes[options],
            Parts.of(self.questions.sizes[kept]),
            self.right[options],
            self.documents[kept],
            self.plain[kept],
            self.expert[kept],
        )

    def losses(self, weights: Floats) -> Floats:
        """Of each question, (q,) nats."""
        return self._losses(self._values(weights))

    def loss(self, weights: Floats, counts: Floats | None = None) -> tuple[float, Floats, Floats]:
        """The sum, its gradient (d,) and its matrix of second derivatives (d, d). counts (q,): how often each question
        counts.
        """
        counts = np.ones(self.count) if counts is None else counts
        values, slopes, right = self._values(weights), self._slopes(weights), self.right
        every = moments(slopes, values, self.questions, counts)
        chosen = moments(slopes[right], values[right], self._right_parts, counts)
        moved = self.questions.shares(values)[1]  # what the loss rises by as an option's value does
        moved[right] -= self._right_parts.shares(values[right])[1]
        moved *= self.questions.each(counts) / self.sizes
        _, gradient, curvature = self.tokens.loss(weights, moved[self.options])
        return every[0] - chosen[0], -gradient, every[2] - chosen[2] - curvature

    def gradients(self, weights: Floats, documents: int) -> Floats:
        """The gradient of each document's loss, (documents, d)."""
        values, slopes, right = self._values(weights), self._slopes(weights), self.right
        own = means(slopes, values, self.questions) - means(slopes[right], values[right], self._right_parts)
        total = np.zeros((documents, len(weights)))
        np.add.at(total, self.documents, own)
        return total

    def swept(self, plain: Sequence[Floats]) -> Floats:
        """As `choose` has plain proxy-tuning, under which a given token is always a candidate, (q, a)."""
        return self.plain

    def alone(self, expert: Floats) -> Floats:
        """As `choose` has the first expert alone, (q,)."""
        return self.expert

    def _losses(self, values: Floats) -> Floats:
        return self.questions.log_sums(values) - self._right_parts.log_sums(values[self.right])

    def _values(self, weights: Floats) -> Floats:
        """What is compared, (o,) nats."""
        summed = np.bincount(self.options, -self.tokens.losses(weights), minlength=len(self.fixed))
        found: Floats = (self.fixed + summed) / self.sizes
        return found

    def _slopes(self, weights: Floats) -> Floats:
        """Its gradient, (o, d)."""
        found = np.zeros((len(self.fixed), len(weights)))
        np.add.at(found, self.options, -self.tokens.slopes(weights))
        return found / self.sizes[:, None]


def _numbers(kept: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Of what is kept, counted from 0."""
    return np.cumsum(kept) - 1


# -- from questions to the table --------------------------------------------------------------------------------------


def choices_of(
    questions: Sequence[Sequence[Option]], spread: Spread, policy: TailPolicy, pairs: Sequence[Pair]
) -> Choices:
    """The table of questions, each its own document, of which some right option has mass; options without any are
    left out. Raises InputError where there is nothing to be learned from.
    """
    tokens: list[tuple[Floats, NDArray[np.bool_], int]] = []
    owners: list[int] = []
    fixed: list[float] = []
    possible = [[option for option in question if option.possible] for question in questions]
    compared = [option for question in possible for option in question]
    numbers = np.repeat(np.arange(len(questions)), [len(question) for question in possible]).tolist()
    spots = iter(_spread(compared, spread, policy, pairs))
    for owner, (option, number) in enumerate(zip(compared, numbers, strict=True)):
        nats = 0.0
        for spot in option.spots:
            found, more = _rows(spot, *next(spots), pairs)
            nats += more
            if found is not None:
                tokens.append((*found, number))
                owners.append(owner)
        fixed.append(nats)
    if not tokens:
        raise InputError(
            "no weight would change the probability of any option",
            hint="Is anything of the options among what the base shows? Raise --top-logprobs.",
        )
    table = Choices(
        Terms.of(tokens),
        np.array(owners, dtype=np.intp),
        np.array(fixed),
        np.array([option.size for option in compared], dtype=np.float64),
        Parts.of([len(question) for question in possible]),
        np.array([option.right for option in compared]),
        np.arange(len(questions), dtype=np.intp),
        np.empty(0),
        np.empty(0),
    )
    plain = np.stack([option.plain for option in compared], axis=1)
    expert = np.array([option.log_expert for option in compared])
    return replace(
        table,
        plain=np.stack([table._losses(values) for values in plain], axis=1),
        expert=table._losses(expert),
    )


def _spread(
    options: Sequence[Option], spread: Spread, policy: TailPolicy, pairs: Sequence[Pair]
) -> list[tuple[Floats, Floats]]:
    """Of each token of the options: log q, (c,), with the hidden mass spread so, and what the weights multiply,
    (c, d).
    """
    places = [spot.place for option in options for spot in option.spots]
    if not places:
        return []
    every = Places.of(places)
    log_q = every.spread_anew(spread, policy, pairs)
    terms = every.terms(log_q, [pair.has_antiexpert for pair in pairs])
    return list(zip(every.parts.split(log_q), every.parts.split(terms), strict=True))


def _rows(
    spot: Spot, log_q: Floats, terms: Floats, pairs: Sequence[Pair]
) -> tuple[tuple[Floats, NDArray[np.bool_]] | None, float]:
    """What is compared at a token, (c, d), which of it is right, (c,), and nats that no weight changes; None where
    there is nothing else. log_q, terms: see `_spread`.
    """
    place = spot.place
    kept = place.among & np.isfinite(log_q)
    own = terms[kept]
    x, right = np.pad(own, ((0, 0), (0, 1))), place.right[kept]
    if spot.log_q is None:
        return (x, right), 0.0
    rest, share, listed = rest_terms(place, log_q, pairs), log_share(log_q[: place.shown], spot.log_q), right.any()
    if not listed and (rest is None or share is None):
        return None, of_nothing(spot.log_q)
    if rest is not None:
        x, right = np.vstack([x, rest]), np.append(right, not listed)
    return (x, right), 0.0 if listed or share is None else share
