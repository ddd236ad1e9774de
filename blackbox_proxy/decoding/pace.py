"""How much to ask for in one request: what the user wishes (`Drafting`), what was seen (`Pace`), where one text stands
(`Course`), the choice (`Plan`).

Pure arithmetic over what was seen: no clock, no network. What is chosen here changes the number and the size of the
requests, never the text of a greedy generation and never the distribution of a sampled one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from blackbox_proxy.errors import InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Abilities
from blackbox_proxy.types import Floats, Usage

Minimise = Literal["latency", "cost"]

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_LOCAL_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MEMORY = 0.98  # weight that an observation keeps per later one: about the last 50 tokens count
_LONGEST_RESCUE = 64  # positions asked for at most when a character must be finished inside one draft
_MOST_RESCUES = 16  # requests for that at one place, of which many may have broken
_PER, _GIVEN = np.array([-0.5, 1.0, 0.0]), np.array([0.0, -0.25, 1.0])  # times of `Passes`: 0 as far as nothing is seen
_DRAFTED = 0.3  # what the expert takes for a token of its own, of what the base here does, before it was seen
_BETTER = 0.97  # local drafts must promise at least 3 % to be preferred: their rate is an estimate, too


@dataclass(frozen=True, slots=True)
class Drafting:
    """How the base is asked for drafts. The text is the same for every setting; calls, time and cost are not.

    n: tokens that the base drafts per request; None chooses the number from the running acceptance rate (see
    `Pace.plan`), without limit where it streams. stream: verify while the draft arrives and close the stream at the
    first disagreement, where the API can. local: let the expert draft, too, where the API can score given text.
    minimise: what the chosen lengths minimise, time or money (`prices`).
    """

    n: int | None = None
    stream: bool = True
    local: bool = True
    minimise: Minimise = "latency"
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise InputError(f"draft must be at least 1, not {self.n}", hint="Leave it out to adapt it.")
        if self.minimise not in ("latency", "cost"):
            raise InputError(f"unknown aim {self.minimise!r}", hint='Minimise "latency" or "cost".')

    @classmethod
    def fixed(cls, n: int) -> Drafting:
        """n tokens of the base per request, whole answers, nothing else."""
        return cls(n=n, stream=False, local=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """One request: `local` tokens of the expert's draft, then at most n of the base's own; streamed or whole."""

    local: int
    n: int
    stream: bool


def run_length(rate: float, n: float) -> float:
    """Expected tokens kept of n drafted ones, 1 + a + ... + a^(n-1) = (1 - a^n) / (1 - a): each is kept if all before
    it were accepted, with rate a; the first that is not accepted is replaced, so it counts, too.
    """
    return n if rate >= 1.0 else (1.0 - rate**n) / (1.0 - rate)


class Rate:
    """A running share: an exponentially weighted mean that begins as if `weight` observations of `start` were seen."""

    def __init__(self, start: float = 0.8, weight: float = 4.0) -> None:
        self._sum, self._weight = start * weight, weight

    @property
    def value(self) -> float:
        return self._sum / self._weight

    @property
    def known(self) -> bool:
        """Whether there is anything that it is the mean of."""
        return self._weight > 0.0

    def saw(self, value: float) -> None:
        self._sum = _MEMORY * self._sum + value
        self._weight = _MEMORY * self._weight + 1.0


class Line:
    """seconds = first + (n - 1) * per, fitted to what was seen (exponentially weighted least squares).

    Begins as if one answer of 1 and one of 21 tokens had been seen, at `first` and `per` seconds; `weight`: what the
    two count, against 1 for each that is seen.
    """

    def __init__(self, first: float = 0.5, per: float = 0.02, weight: float = 1.0) -> None:
        self._sums = [0.0] * 5  # of 1, x, xx, t, xt with x = n - 1
        self._add(0.0, first)
        self._add(20.0, first + 20.0 * per)
        self._sums = [weight * one for one in self._sums]

    def _add(self, x: float, t: float) -> None:
        self._sums = [_MEMORY * old + new for old, new in zip(self._sums, (1.0, x, x * x, t, x * t), strict=True)]

    def saw(self, n: int, seconds: float, given: int = 0) -> None:
        """An answer of n tokens; what it took to read the tokens that it was given is a part of the first."""
        self._add(n - 1.0, seconds)

    given = 0.0

    @property
    def per(self) -> float:
        one, x, xx, t, xt = self._sums
        return max((one * xt - x * t) / (one * xx - x * x), 1e-6)

    @property
    def first(self) -> float:
        one, x, _, t, _ = self._sums
        return max((t - x * self.per) / one, 0.0)


class Passes:
    """seconds = first + (n - 1) * per + m * given, of n tokens written after m that were given: where base and pair run
    in this process, and what they take is unknown by orders of magnitude.

    Weighted least squares as in `Line`. What was not tried yet is priced by what was: a further token at half of the
    first, a given one at a quarter of a further one.
    """

    def __init__(self, first: float = 0.04) -> None:
        self._squares = np.zeros((3, 3))
        self._products = np.zeros(3)
        self._add((1.0, 0.0, 0.0), 0.1 * first, 0.1)
        self._ratios = np.outer(_PER, _PER) + np.outer(_GIVEN, _GIVEN)

    def _add(self, row: Sequence[float], t: float, weight: float = 1.0) -> None:
        self._squares = _MEMORY * self._squares + weight * np.outer(row, row)
        self._products = _MEMORY * self._products + np.multiply(row, t)
        self._found: Floats | None = None

    def saw(self, n: int, seconds: float, given: int = 0) -> None:
        self._add((1.0, n - 1.0, float(given)), seconds)

    def _fitted(self, i: int) -> float:
        if self._found is None:
            self._found = np.linalg.solve(self._squares + self._ratios, self._products)
        return float(self._found[i])

    @property
    def first(self) -> float:
        return max(self._fitted(0), 0.0)

    @property
    def per(self) -> float:
        return max(self._fitted(1), 1e-6)

    @property
    def given(self) -> float:
        return max(self._fitted(2), 0.0)


class Pace:
    """The running figures of a tuner, or of one text, and the plan of the next request that follows from them.

    `measures`: whether measured times count. A sampled text with a seed must come out the same again, and where its
    requests begin decides which random numbers the API uses: there only the text's own acceptance rates count.
    here: the base runs in this process, so that nothing but the models' own time is to be saved.
    """

    def __init__(self, drafting: Drafting, *, measures: bool = True, here: bool = False) -> None:
        self.drafting = drafting
        self.base = Rate()
        self.local = Rate(0.5, 1.0) if here else Rate()
        self.cached = Rate(0.0, 1.0)
        self.here = here
        self.answer: Line | Passes = Passes() if here else Line()
        self.local_seconds = Rate(0.005, 0.0 if here else 1.0)
        self.measures = measures

    # -- what was seen --------------------------------------------------------------------------------------------

    def saw_choice(self, base: float, local: float | None) -> None:
        """One token was chosen: how likely the base's draft agreed (0 to 1), and the expert's (None: not looked at)."""
        self.base.saw(base)
        if local is not None:
            self.local.saw(local)

    def saw_answer(self, n: int, seconds: float, given: int = 0, first: bool = False) -> None:
        """An answer, or the part of a stream up to here, had n tokens after so many seconds. given: local tokens that
        the base read for it. first: it is a text's first; in this process, its prompt was read for it as well.
        """
        if self.measures and n > 0 and not (first and self.here):
            self.answer.saw(n, seconds, given)

    def saw_local(self, n: int, seconds: float) -> None:
        """The local pair took so many seconds to draft n tokens."""
        if self.measures and n > 0:
            self.local_seconds.saw(seconds / n)

    def saw_prompt(self, tokens: int, cached: int) -> None:
        """So many of a request's prompt tokens were in the API's cache."""
        if tokens > 0:
            self.cached.saw(cached / tokens)

    # -- what follows ---------------------------------------------------------------------------------------------

    def plan(self, abilities: Abilities, left: int, prompt_tokens: float) -> Plan:
        """The request that is worth most: the m >= 0 and n >= 1 that minimise the price of a token,

            price(m, n) = (F + m g + N v) / (K(a_l, m) + a_l^m K(a_b, n)),      K(a, n) = (1 - a^n) / (1 - a)

        where the denominator is what the request is expected to bring (`run_length`): m tokens of the local draft with
        acceptance rate a_l, and if all of them are accepted n of the base's own with rate a_b. N is n for a whole
        answer; of a stream, which is closed at the first disagreement, only a_l^m K(a_b, n) tokens are paid.

                     F (per request)                           g (per local token)      v (per token of the base)
            latency  seconds to the first token, less v        seconds to draft and     seconds per token
                                                               read it
            cost     prompt tokens x price of those (the       price of a prompt token  price of an output token
                     cached share x the cached price)

        `left`: tokens that can still be used; `prompt_tokens`: length of the request.
        """
        wishes = self.drafting
        prices = wishes.prices
        if wishes.minimise == "cost":
            known = self.cached.value
            fixed = prompt_tokens * (known * prices.cached_prompt + (1.0 - known) * prices.prompt)
            given, each = prices.prompt, prices.output
        else:
            each = self.answer.per
            given = (self.local_seconds.value if self.local_seconds.known else _DRAFTED * each) + self.answer.given
            fixed = max(self.answer.first - each, 0.0)
        streams = wishes.stream and abilities.streams
        a_l, a_b = min(self.local.value, 0.999), min(self.base.value, 0.999)

        def price(m: int, n: int, stream: bool) -> float:
            reached = a_l**m * run_length(a_b, n)
            return (fixed + m * given + (reached if stream else n) * each) / (run_length(a_l, m) + reached)

        def best(m: int) -> tuple[float, Plan]:
            most = max(left - m, 1)
            stream = streams and (m == 0 or abilities.streams_scored)
            if wishes.n is not None:
                lengths = [min(wishes.n, most)]
            elif stream:
                lengths = [most]
            else:
                lengths = [*(n for n in _LENGTHS if n < most), min(most, _LENGTHS[-1])]
            return min(((price(m, n, stream), Plan(m, n, stream)) for n in lengths), key=lambda found: found[0])

        chosen = best(0)
        if wishes.local and abilities.scores:
            with_local = min((best(m) for m in _LOCAL_LENGTHS if 0 < m < left), key=lambda x: x[0], default=chosen)
            if with_local[0] < _BETTER * chosen[0]:
                chosen = with_local
        return chosen[1]


class Course:
    """The requests of one text: what the next one may ask for, as far as the text has come, and what it must bring.

    prompt_tokens: of the prompt, a guess until the API says it.
    """

    def __init__(self, pace: Pace, prompt_tokens: float) -> None:
        self.pace = pace
        self.useful_from = 1
        self._length = prompt_tokens  # of a request, when the text had `_length_at` tokens
        self._length_at = 0
        self._most: int | None = None  # what the base's window was found to leave, where it is not known
        self._apart = True  # the base can keep a local draft apart from the prefix, as far as the last request tells
        self._rescue = 0  # positions to ask for to finish what a token has begun
        self._rescues = 0

    def plan(self, abilities: Abilities, left: int, room: int | None, place: int) -> Plan:
        """The next request. left: tokens that the text may get; room: that the base's window has, None where it is not
        known; place: tokens that the text has.
        """
        known = [most for most in (self._rescue or left, room, self._most) if most is not None]
        reach = max(1, min(known))
        if self._rescue:
            return Plan(0, reach, self.pace.drafting.stream and abilities.streams)
        if not self._apart:
            abilities, self._apart = replace(abilities, scores=False), True
        return self.pace.plan(abilities, reach, self._length + place - self._length_at)

    @property
    def patient(self) -> bool:
        """Whether a longer draft is worth asking for where a choice hangs on one."""
        return self._rescue < _LONGEST_RESCUE and self._rescues < _MOST_RESCUES

    # -- what came of the last request ----------------------------------------------------------------------------

    def saw_request(self, usage: Usage, local: int, place: int) -> None:
        """What a request has cost that went on from `place` with so many tokens of the local draft."""
        if usage.prompt_tokens > 0:
            self._length, self._length_at = usage.prompt_tokens - local, place
            self.pace.saw_prompt(usage.prompt_tokens, usage.cached_prompt_tokens)

    def moved(self) -> None:
        """The text has got a token."""
        self.useful_from, self._rescue, self._rescues = 1, 0, 0

    def must_be_longer(self, positions: int, broke: bool) -> None:
        """A draft with so many positions of the base's own decided nothing: a token begins in it what must be finished,
        and the next draft must do that. broke: it ended early for no reason that would be the same again.
        """
        self._rescue = max(8, 2 * positions, 0 if broke else 2 * self._rescue)
        self.useful_from = positions + 1
        self._rescues += 1

    def must_be_shorter(self, plan: Plan) -> bool:
        """The base has no room for this. False where less cannot be asked for."""
        size = plan.local + plan.n
        self._most = max(1, size // 2)
        return size > 1

    def without_local(self) -> None:
        """The next request gets no local draft: the base could not keep the last one apart from the prefix."""
        self._apart = False
