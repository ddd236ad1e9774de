"""The other way to steer: the offset itself is sent as a `logit_bias`, and the server chooses.

For endpoints that honour a bias but show few log probabilities or none. One token a request: at each place the pair's
offsets, alpha * (log E - log A), of the tokens that they move most become the bias; what the server then writes is
issued back. With as many keys as tokens this is proxy-tuning itself; with fewer it is an approximation in one respect
only: tokens without a key count as not moved. A token that comes back and had no key is looked at: where the pair is
against it, it gets its key and the server is asked once more (greedy), or it is turned down with the probability that
the pair takes from it (sampled). Tokens that the pair favours, but neither of its models finds likely, come too short.

    prefix -> Session.score -> offsets -> Base.steer -> token -> Step, prefix grows
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np

from blackbox_proxy.decoding.contenders import noticeable
from blackbox_proxy.decoding.rows import Rows, complete, opened, refine, score
from blackbox_proxy.decoding.text import Limits, Text
from blackbox_proxy.decoding.threads import Turns
from blackbox_proxy.errors import BadResponse, CannotContinue, ContextTooLong
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.sampling import Sampling, request_seed, uniform
from blackbox_proxy.protocols import Base, Pair, Session
from blackbox_proxy.types import END, Draft, Floats, Position, Prefix, Prompt, Step, Token, Usage

_FORBIDDEN = -100.0  # nats: as far as the APIs go
_ROUNDS = 8  # requests for one token, at most


async def decode_biased(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, equation: Equation, limits: Limits, sampling: Sampling
) -> AsyncIterator[Step]:
    """The steps of one text; the last one carries the finish reason. Steps have no candidates: q is not known.

    Raises BaseError for what the API does, CannotContinue where what it writes cannot be issued back. What a local
    model's window no longer holds ends the text with "length".
    """
    text = Text(base, prompt, limits)
    steering = Steering(base, text, sampling)
    with opened(pairs, prompt, base.vocabulary) as sessions:
        try:
            while not text.finished:
                try:
                    offsets = await steering.turns.run(offsets_after, sessions, text.prefix, equation)
                except ContextTooLong:
                    if text.place == 0:
                        raise
                    yield text.close("length")
                    return
                yield await steering.next(offsets)
        finally:
            await steering.turns.idle()


def offsets_after(sessions: Sequence[Session], prefix: Prefix, equation: Equation) -> Offsets:
    (rows,) = score(sessions, prefix.tokens, [Position.ahead()])
    return Offsets(sessions, rows, equation, len(prefix.tokens))


class Offsets:
    """What the pairs add to the base at one place: alpha * (log E - log A), nats, summed over the pairs. It runs the
    models where they have only estimated what is asked.
    """

    def __init__(self, sessions: Sequence[Session], rows: Rows, equation: Equation, place: int) -> None:
        self._sessions = sessions
        self._rows = rows
        self._equation = equation
        self._place = place

    def of(self, tokens: Sequence[Token]) -> Floats:
        """The offsets (t,) of these tokens of the base; 0 for those that the pairs know nothing of."""
        refine(self._sessions, [(self._rows, tokens)])
        return self._equation.shift([row.score(tokens) for row in self._rows], self._place)

    def largest(self, keys: int) -> dict[Token, float]:
        """The bias of the `keys` tokens that move most: by the probability that expert or anti-expert gives them,
        times the size of their offset.
        """
        proposed = [token for row in self._rows for model in (0, 1) for token in row.propose(4 * keys, model)]
        tokens = list({token.key: token for token in proposed if token.end or token.bytes}.values())
        if not tokens:
            return {}
        complete(self._sessions, [self._rows], lambda _: [self._unsure(tokens)])
        scores = [row.score(tokens) for row in self._rows]
        offsets = self._equation.shift(scores, self._place)
        weight = np.exp(self._log_mass(tokens))
        order = np.argsort(-weight * np.abs(offsets), kind="stable")[:keys]
        return {tokens[int(i)]: float(offsets[i]) for i in order if offsets[i] != 0.0}

    def _unsure(self, tokens: Sequence[Token]) -> list[Token]:
        """Those whose offset may be so far off that it would be noticed."""
        error = self._equation.error([row.score(tokens) for row in self._rows], self._place)
        return [tokens[int(i)] for i in noticeable(self._log_mass(tokens), error)]

    def _log_mass(self, tokens: Sequence[Token]) -> Floats:
        """The most that any model gives each token, (t,) nats."""
        scores = [row.score(tokens) for row in self._rows]
        most: Floats = np.max([np.maximum(each.log_expert, each.log_antiexpert) for each in scores], axis=0)
        return most


class Steering:
    """How the next token of a text is asked for."""

    def __init__(self, base: Base, text: Text, sampling: Sampling) -> None:
        self.turns = Turns()  # of the sessions
        self._base = base
        self._text = text
        self._sampling = sampling

    async def next(self, offsets: Offsets) -> Step:
        """The next token: asked for again while what comes back is not what the pairs would have."""
        place, spent = self._text.place, Usage()
        ends = 0 if self._base.vocabulary is None else len(self._base.vocabulary.end_ids)
        keys = max(1, self._base.abilities.biases - ends)
        bias = await self.turns.run(offsets.largest, keys)
        for attempt in range(_ROUNDS * place, _ROUNDS * (place + 1)):
            draft = await self._written(bias, attempt)
            spent += draft.usage
            if draft.finish is not None and not draft.positions:
                return replace(self._text.close(draft.finish, draft.reason), usage=spent)
            token = draft.positions[0].token
            (own,) = await self.turns.run(offsets.of, [token]) if self._can_stay(token) else (_FORBIDDEN,)
            known = token.key in {other.key for other in bias}
            if own > _FORBIDDEN and (known or self.is_accepted(own, attempt)):
                return self._take(token, spent)
            if token.id is None and not token.end:
                raise CannotContinue(
                    "the base wrote a token that cannot be identified, so it can neither be kept nor avoided",
                    hint="Give open_base the base's tokenizer.",
                )
            if len(bias) >= keys:
                del bias[next(reversed(bias))]  # the one that moves least
            bias = {token: float(own), **bias}
        if not self._can_stay(token):
            raise CannotContinue(
                f"after {_ROUNDS} requests the base still writes tokens that cannot be issued back to it",
                hint="Use a server that takes token ids as prompts.",
            )
        return self._take(token, spent)

    async def _written(self, bias: dict[Token, float], attempt: int) -> Draft:
        """What the base writes under this bias: a token, or that the text ended."""
        sampling = self._sampling
        draft = await self._base.steer(
            self._text.prefix,
            bias,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if sampling.temperature == 0.0 else request_seed(sampling.seed, attempt),
        )
        if draft.positions or draft.ended:
            ends = draft.finish == "stop" and not draft.positions
            return replace(draft, positions=(Position(END, None, (), np.empty(0)),)) if ends else draft
        if self._text.place == 0:
            raise BadResponse("the base answered with no token and no end", hint="Look at the server's log.")
        return replace(draft, finish="other", reason="an empty answer")  # what there is has been paid for

    def is_accepted(self, own: float, attempt: int) -> bool:
        """Whether a token without a key stays. Drawn: with the probability that its offset leaves of it, so that what
        is drawn in the end follows p, whichever tokens had keys; only offsets above 0 come too short.
        """
        sampling = self._sampling
        if own >= 0.0 or sampling.temperature == 0.0:
            return own >= 0.0
        return uniform(sampling.seed, attempt) < math.exp(max(own / sampling.temperature, -700.0))

    def _can_stay(self, token: Token) -> bool:
        return token.end or (token.bytes is not None and self._text.can_rest_after(self._text.prefix.plus(token)))

    def _take(self, token: Token, spent: Usage) -> Step:
        return replace(self._text.take(token), usage=spent)
