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

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

import numpy as np

from blackbox_proxy.decoding.sessions import opened
from blackbox_proxy.decoding.weigh import Settings, alpha_at
from blackbox_proxy.errors import BadResponse, CannotContinue, ContextTooLong
from blackbox_proxy.maths.sampling import request_seed, uniform
from blackbox_proxy.protocols import Base, Pair, Row, Session
from blackbox_proxy.text.writer import Writer
from blackbox_proxy.types import END, Candidates, FinishReason, Floats, Position, Prefix, Prompt, Step, Token, Usage

_FORBIDDEN = -100.0  # nats: as far as the APIs go
_ROUNDS = 8  # requests for one token, at most
_BLANK = Position(Token(), None, (), np.empty(0))


async def decode_biased(base: Base, pairs: Sequence[Pair], prompt: Prompt, settings: Settings) -> AsyncIterator[Step]:
    """The steps of one text; the last one carries the finish reason. Steps have no candidates: q is not known.

    Raises BaseError for what the API does, CannotContinue where what it writes cannot be issued back. What a local
    model's window no longer holds ends the text with "length".
    """
    with opened(pairs, prompt, base.vocabulary) as sessions:
        text = _Text(base, settings, Prefix(prompt))
        while not text.finished:
            try:
                rows = await asyncio.to_thread(_rows, sessions, text.prefix)
            except ContextTooLong:
                if not text.prefix.tokens:
                    raise
                yield text.closing()
                return
            yield await text.next(Offsets(rows, settings, len(text.prefix.tokens)))


def _rows(sessions: Sequence[Session], prefix: Prefix) -> list[Row]:
    return [session.score(prefix.tokens, [_BLANK])[0] for session in sessions]


class Offsets:
    """What the pairs add to the base at one place: alpha * (log E - log A), nats, summed over the pairs."""

    def __init__(self, rows: Sequence[Row], settings: Settings, place: int) -> None:
        self._rows = rows
        self._alphas = [alpha_at(alpha, place) for alpha in settings.alphas]

    def of(self, tokens: Sequence[Token]) -> Floats:
        """The offsets (t,) of these tokens of the base; 0 for those that the pairs know nothing of."""
        total = np.zeros(len(tokens))
        for row, alpha in zip(self._rows, self._alphas, strict=True):
            if alpha != 0.0:
                total += alpha * row.score(tokens).offset
        return total

    def largest(self, keys: int) -> dict[Token, float]:
        """The bias of the `keys` tokens that move most: by the probability that expert or anti-expert gives them,
        times the size of their offset.
        """
        found = {
            token.key: token
            for row in self._rows
            for model in (0, 1)
            for token in row.propose(4 * keys, model)
            if token.end or token.bytes
        }
        tokens = list(found.values())
        if not tokens:
            return {}
        offsets, weight = self.of(tokens), np.zeros(len(tokens))
        for row in self._rows:
            scores = row.score(tokens)
            weight = np.maximum(weight, np.exp(np.maximum(scores.log_expert, scores.log_antiexpert)))
        order = np.argsort(-weight * np.abs(offsets), kind="stable")[:keys]
        return {tokens[int(i)]: float(offsets[i]) for i in order if offsets[i] != 0.0}


class _Text:
    """The text so far, and how its next token is asked for."""

    def __init__(self, base: Base, settings: Settings, prefix: Prefix) -> None:
        self.prefix = prefix
        self.finished = False
        self._base = base
        self._settings = settings
        self._writer = Writer(settings.stop)

    def closing(self) -> Step:
        """The last step where a local model's window is full."""
        self.finished = True
        return _step(b"", self._writer.close(), None, False, "length", Usage())

    async def next(self, offsets: Offsets) -> Step:
        """The next token: asked for again while what comes back is not what the pairs would have."""
        sampling, place = self._settings.sampling, len(self.prefix.tokens)
        keys = max(1, self._base.abilities.biases - len(self._ends()))
        bias = offsets.largest(keys)
        spent = Usage()
        for attempt in range(_ROUNDS * place, _ROUNDS * (place + 1)):
            draft = await self._base.steer(
                self.prefix,
                bias,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=None if sampling.temperature == 0.0 else request_seed(sampling.seed, attempt),
            )
            spent += draft.usage
            if not draft.positions and draft.finish != "stop":
                raise BadResponse("the base answered with no token and no end", hint="Look at the server's log.")
            token = draft.positions[0].token if draft.positions else END
            own = float(offsets.of([token])[0]) if self._can_stay(token) else _FORBIDDEN
            known = token.key in {other.key for other in bias}
            if own > _FORBIDDEN and (known or self._is_accepted(own, attempt)):
                return self._take(token, spent)
            if token.id is None and not token.end:
                raise CannotContinue(
                    "the base wrote a token that cannot be identified, so it can neither be kept nor avoided",
                    hint="Give open_base the base's tokenizer.",
                )
            if len(bias) >= keys:
                del bias[next(reversed(bias))]  # the one that moves least
            bias = {token: own, **bias}
        if not self._can_stay(token):
            raise CannotContinue(
                f"after {_ROUNDS} requests the base still writes tokens that cannot be issued back to it",
                hint="Use a server that takes token ids as prompts.",
            )
        return self._take(token, spent)

    def _is_accepted(self, own: float, attempt: int) -> bool:
        """Whether a token without a key stays. Drawn: with the probability that its offset leaves of it, so that what
        is drawn in the end follows p, whichever tokens had keys; only offsets above 0 come too short.
        """
        sampling = self._settings.sampling
        if own >= 0.0 or sampling.temperature == 0.0:
            return own >= 0.0
        return uniform(sampling.seed, attempt) < math.exp(max(own / sampling.temperature, -700.0))

    def _ends(self) -> frozenset[int]:
        return frozenset() if self._base.vocabulary is None else self._base.vocabulary.end_ids

    def _can_stay(self, token: Token) -> bool:
        last = len(self.prefix.tokens) + 1 >= self._settings.max_tokens
        return token.end or (token.bytes is not None and (last or self._base.can_continue(self.prefix.plus(token))))

    def _take(self, token: Token, spent: Usage) -> Step:
        self.prefix = self.prefix.plus(token)
        last = len(self.prefix.tokens) >= self._settings.max_tokens or self._base.room(self.prefix) == 0
        text, finish = self._writer.release(token, last)
        self.finished = finish is not None
        return _step(b"" if token.end else token.bytes or b"", text, token.id, token.end, finish, spent)


def _step(token: bytes, text: str, index: int | None, end: bool, finish: FinishReason | None, usage: Usage) -> Step:
    nothing = np.empty(0)
    none = Candidates((), nothing, nothing, nothing, nothing, np.empty(0, dtype=np.bool_), ())
    return Step(token, text, index, none, 0.0, False, False, end, finish, usage)
