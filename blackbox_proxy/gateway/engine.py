"""The tuned model as an engine of `serve`: a `TextWanted` becomes the steps of a `ProxyTuner`, these become `Event`s.

    TextWanted -> check, read (prompts.py) -> tuner of its alpha and tail -> Steps -> positions of p -> Events

Candidates and their log probabilities are those of the *tuned* distribution, at temperature 1; under the base's own
name they are the base's. What the far side billed for a text is in its events (`Event.upstream`).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, field, replace
from typing import Any, cast

from blackbox_proxy.decoding.pace import Drafting
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.gateway.echo import check_echo, echoed
from blackbox_proxy.gateway.failures import as_answer
from blackbox_proxy.gateway.pairs import NoPair
from blackbox_proxy.gateway.prompts import Reader
from blackbox_proxy.gateway.telling import Json, Teller, check_steps
from blackbox_proxy.maths.equation import Alpha, Equation
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.serve.engine import Event, Placed, TextWanted
from blackbox_proxy.serve.text import Feed
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Candidates, FinishReason, Position, Prefix, Prompt, Step, TailPolicy, Token, Usage

MOST_LOGPROBS = 64  # a step keeps so many candidates for certain
_USUAL_LENGTH = 1024  # tokens of a chat's answer where neither the request nor a window says
_MOST_TUNERS = 64  # what is learned of how to ask is kept for so many alphas and tails


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may choose. alphas: the least and the most alpha, None where the operator has chosen. tails: the
    policies besides the model's own. steps: it may be told how each token was chosen. Raises InputError.
    """

    alphas: tuple[float, float] | None = None
    tails: tuple[str, ...] = ()
    steps: bool = False

    def __post_init__(self) -> None:
        if self.alphas is not None and not self.alphas[0] <= self.alphas[1]:
            raise InputError(f"the range of alpha is empty: {self.alphas[0]:g} to {self.alphas[1]:g}")

    def alpha(self, value: Any) -> float:
        """A request's alpha. Raises InputError."""
        if self.alphas is None:
            raise InputError("this server does not let requests choose 'alpha'", hint="Its --alpha-range does.")
        low, high = self.alphas
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError("'alpha' must be a number", hint=f"From {low:g} to {high:g}.")
        if not low <= value <= high:
            raise InputError(f"'alpha' must be from {low:g} to {high:g} here, not {value:g}")
        return float(value)

    def tail(self, value: Any, own: str) -> TailPolicy:
        """A request's tail policy. Raises InputError."""
        allowed = {own, *self.tails}
        if not isinstance(value, str) or value not in allowed:
            raise InputError(f"'tail' must be one of {', '.join(sorted(allowed))} here, not {str(value)[:40]!r}")
        return cast(TailPolicy, value)


@dataclass(frozen=True, slots=True)
class Model:
    """One name that the gateway answers to. pairs: none for the base itself. alphas: one for each pair; weights:
    learned ones, in their place. prices: of the far side's tokens, where they are known.
    """

    name: str
    pairs: tuple[Pair, ...]
    alphas: tuple[Alpha, ...] = (1.0,)
    tail: TailPolicy = "backoff"
    tail_size: int = 32
    drafting: Drafting = field(default_factory=Drafting)
    bounds: Bounds = field(default_factory=Bounds)
    top_logprobs: int = 20
    weights: Weights | None = None
    prices: Prices | None = None


class TunedEngine:
    """One model of a gateway. Many texts at a time; all share what `base` and the pairs share."""

    own_fields = ("alpha", "tail", "steps")

    def __init__(self, base: Base, model: Model, reader: Reader) -> None:
        self._base = base
        self._model = model
        self._reader = reader
        self._pairs: tuple[Pair, ...] = model.pairs or (NoPair(),)
        alphas = model.alphas if model.pairs else (0.0,)
        tail = model.tail if model.pairs else "truncate"
        self._equation = Equation(alphas, tail, model.tail_size, model.weights)
        if len(alphas) != len(self._pairs):
            raise InputError(f"{model.name} has {len(self._pairs)} pairs but {len(alphas)} alphas")
        self._tuners: OrderedDict[tuple[float | None, TailPolicy], ProxyTuner] = OrderedDict()

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def top_logprobs(self) -> int:
        return min(self._model.top_logprobs, MOST_LOGPROBS)

    @property
    def context(self) -> int | None:
        return self._base.context

    @property
    def about(self) -> Mapping[str, Any]:
        """What the list of models says of it, besides."""
        prices = self._model.prices
        most = self.top_logprobs if self._model.bounds.steps else 0
        about = {"steps": most, "prices": None if prices is None else astuple(prices)}
        if not self._model.pairs:
            return {"alpha": None, **about}
        plain = self._equation.weights is None
        alphas = [a if plain and isinstance(a, (int, float)) else None for a in self._equation.alphas]
        bounds = self._model.bounds
        return {
            "alpha": alphas[0] if len(alphas) == 1 else alphas,
            "alpha_range": bounds.alphas,
            "tail": self._equation.tail,
            "tails": sorted({self._equation.tail, *bounds.tails}),
            **about,
        }

    # -- asked ----------------------------------------------------------------------------------------------------

    def check(self, wanted: TextWanted) -> None:
        if wanted.bias:
            raise InputError("'logit_bias' is not supported here: the tuned model is no server's own", hint="")
        if wanted.shown_ids:
            raise InputError("'logprob_token_ids' is not supported here")
        if wanted.echo:
            check_echo(self._base, wanted)
        if "steps" in wanted.own:
            logprobs, allowed = wanted.top_logprobs is not None, self._model.bounds.steps
            check_steps(wanted.own["steps"], self.top_logprobs, allowed=allowed, logprobs=logprobs)
        prompt = self._reader.read(wanted)
        self._tuner(wanted).check(prompt, max(1, self._most(wanted, prompt)))

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        try:
            async with aclosing(self._events(wanted)) as events:
                async for event in events:
                    yield event
        except BlackboxError as error:
            raise as_answer(error) from error

    async def _events(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        prompt, tuner = self._reader.read(wanted), self._tuner(wanted)
        known = self._reader.ids(prompt)
        most, start = self._most(wanted, prompt), 0
        if wanted.echo:
            assert known is not None, "checked"
            repeated = await echoed(self._base, tuner, wanted, known)
            start = len(repeated.text)
            finish: FinishReason | None = "length" if most == 0 else None
            yield replace(repeated, finish_reason=finish, usage=Usage(prompt_tokens=len(known)), prompt_ids=known)
            if most == 0:
                return
        length = None if known is None else len(known)
        writing = _Writing(wanted, length, guessed_tokens(prompt), bool(self._model.pairs), start)
        steps = tuner.astream(
            prompt, max_tokens=most, temperature=wanted.temperature, top_p=wanted.top_p, seed=wanted.seed
        )
        async with aclosing(cast(AsyncGenerator[Step, None], steps)) as stream:
            async for step in stream:
                event = writing.event(step)
                yield replace(event, prompt_ids=known) if writing.count == 1 and not wanted.echo else event
                if event.finish_reason is not None:
                    return

    def _tuner(self, wanted: TextWanted) -> ProxyTuner:
        """The tuner of a request's alpha and tail: what one text learns of the far side, the next one knows."""
        alpha: float | None = None
        tail = self._equation.tail
        for name, value in wanted.own.items():
            if name == "steps":
                continue
            if not self._model.pairs:
                raise InputError(f"{self.name} is the base itself, which has no '{name}'")
            if name == "alpha":
                alpha = self._model.bounds.alpha(value)
            else:
                tail = self._model.bounds.tail(value, tail)
        tuner = self._tuners.get((alpha, tail))
        if tuner is None:
            equation = replace(self._equation, tail=tail)
            equation = equation if alpha is None else equation.with_alpha(alpha)
            tuner = ProxyTuner.of(self._base, self._pairs, equation, self._model.drafting)
            self._tuners[alpha, tail] = tuner
            while len(self._tuners) > _MOST_TUNERS:
                self._tuners.popitem(last=False)
        return tuner

    def _most(self, wanted: TextWanted, prompt: Prompt) -> int:
        """Tokens of the answer at most."""
        if wanted.max_tokens is not None:
            return wanted.max_tokens
        room = self._base.room(Prefix(prompt))
        return _USUAL_LENGTH if room is None else max(1, room)


class _Writing:
    """Steps of one text -> events: positions of the distribution that is shown, and what the text cost."""

    def __init__(self, wanted: TextWanted, prompt_tokens: int | None, guessed: float, tuned: bool, start: int) -> None:
        self.count = 0
        self._k = wanted.top_logprobs
        self._prompt_tokens = prompt_tokens
        self._guessed = guessed
        self._tuned = tuned
        self._echoes = wanted.echo
        steps = wanted.own.get("steps")
        self._teller = None if steps is None else Teller(steps, tuned=tuned)
        self._told: deque[Json] = deque()  # of tokens that the feed holds back
        self._feed = Feed(wanted.stop, start, errors="ignore")

    def event(self, step: Step) -> Event:
        """The event of the next step."""
        self.count += 1
        written = bool(len(step.candidates)) or step.token != b""
        usage = Usage(completion_tokens=1 if written or step.end else 0)
        if self.count == 1 and not self._echoes:
            usage = replace(usage, prompt_tokens=self._length(step.usage))
        if written and self._teller is not None:
            self._told.append(self._teller.told(step))
        text, entries, stopped = self._feed.push(self._position(step)) if written else ("", (), False)
        entries = self._with_telling(entries)
        if not stopped and step.finish_reason is None:
            return Event(text, entries, usage=usage, upstream=step.usage)
        rest, waiting = self._feed.close() if not stopped else ("", ())
        finish = "stop" if stopped else step.finish_reason
        entries += self._with_telling(waiting)
        return Event(text + rest, entries, finish, usage, upstream=step.usage)

    def _with_telling(self, entries: tuple[Placed, ...]) -> tuple[Placed, ...]:
        if self._teller is None:
            return entries
        return tuple(replace(entry, about=self._told.popleft()) for entry in entries)

    def _length(self, first: Usage) -> int:
        """Tokens of the prompt: counted here, else by the API, else about."""
        if self._prompt_tokens is not None:
            return self._prompt_tokens
        return first.prompt_tokens // first.api_calls if first.api_calls else max(1, round(self._guessed))

    def _position(self, step: Step) -> Position:
        candidates = step.candidates
        shown = candidates.log_p if self._tuned else candidates.log_q
        index = _index_of(step, candidates)
        token = candidates.tokens[index] if index is not None else Token(step.token_id, step.token, end=step.end)
        k = min(self._k or 0, len(candidates))
        order = shown.argsort(kind="stable")[::-1][:k] if not self._tuned else range(k)
        tokens = tuple(candidates.tokens[int(i)] for i in order)
        return Position(token, None if index is None else float(shown[index]), tokens, shown[list(order)])


def _index_of(step: Step, candidates: Candidates) -> int | None:
    """Where the chosen token stands among its candidates."""
    for index, token in enumerate(candidates.tokens):
        if step.end and token.end:
            return index
        if not step.end and not token.end and token.id == step.token_id and (token.bytes or b"") == step.token:
            return index
    return None


def models_of(base: Base, models: Sequence[Model], reader: Reader) -> list[TunedEngine]:
    """The engines of a gateway. Raises InputError for two of one name."""
    names = [model.name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two models are called {twice!r}", hint="Give each a name of its own.")
    return [TunedEngine(base, model, reader) for model in models]
