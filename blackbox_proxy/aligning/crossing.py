"""What two vocabularies say of each other, whatever the text: which local tokens begin with which token of the base.

A local token t that stands right after x causes the base's token F(t), the first one when the base cuts it. So the row
after x alone already splits into the base's events,

    R(c | x)  =  sum over local t with F(t) = c of  p(t | x)                 `covering(c)` are those t

and misses only what is written in several local tokens: c in pieces (`leading(c)` are the shorter local tokens that
begin it, `begins` is the first of its usual spelling), and what goes on from a token that ends where c ends.
estimated.py uses this as an estimate with an error bar, alignment.py and masses.py have the exact sums.

F is a table over the local vocabulary where the base's is known, made once and kept; of a base that is learned
from its candidates it is found in the sorted local vocabulary, candidate by candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from blackbox_proxy.aligning.alignment import Alignment
from blackbox_proxy.text.kept import digest, kept
from blackbox_proxy.text.vocabulary import Ids, Vocabulary, utf8_prefix
from blackbox_proxy.types import Token

_MOST_KNOWN = 200_000  # tokens of the base whose relations are remembered
_NONE: Ids = np.empty(0, dtype=np.int64)


class Relations(NamedTuple):
    """How one token of the base stands to the local vocabulary: `covering` and `leading` ids (see above; nothing leads
    to what is usually one local token), the first id of its usual spelling (-1 where it has none), of how many ids that
    is, whether the local tokenizer goes on from it to write a longer token of the base ("2" before "23"), and in how
    many blanks it ends, 2 for several.
    """

    covering: Ids
    leading: Ids
    begins: int
    pieces: int
    goes_on: bool
    blanks: int


class Crossing:
    """The relations between one local vocabulary and one base. Safe for threads: entries are added, never changed."""

    def __init__(self, alignment: Alignment) -> None:
        self.local = alignment.local
        self.base = base = alignment.base
        self._goes_on = alignment.may_go_on
        self._known: dict[bytes, Relations] = {}
        self._order, self._starts = _NONE, dict[bytes, tuple[int, int]]()
        self._events: list[bytes] = []
        self._codes: Ids | None = None
        self._tokens: dict[bytes, Token] = {}
        if isinstance(base, Vocabulary):
            self._tabulate(base)

    def of(self, tokens: Sequence[bytes]) -> list[Relations]:
        """The relations of each of these tokens of the base."""
        known = self._known
        missing = [token for token in dict.fromkeys(tokens) if token not in known]
        if missing:
            if len(known) > _MOST_KNOWN:
                known = self._known = {}  # whoever reads the old one goes on with it
                missing = list(dict.fromkeys(tokens))
            for token, (begins, pieces) in zip(missing, self._begins(missing), strict=True):
                alone = self.local.id_of(token) == begins and not token[-1:].isspace()
                leading = _NONE if alone else self._leading(token)
                blanks = min(len(token) - len(token.rstrip()), 2)
                known[token] = Relations(self._covering(token), leading, begins, pieces, self._goes_on(token), blanks)
        return [known[token] for token in tokens]

    def codes(self, ids: Sequence[Ids]) -> tuple[list[Ids], Sequence[bytes]]:
        """F of some local ids, array by array, as places in the list that comes with them; -1 where an id writes
        nothing.
        """
        if self._codes is not None:
            return [self._codes[some] for some in ids], self._events
        texts = [[self.local.spelling[index] or b"" for index in some] for some in ids]
        firsts = iter(self.base.first([text for some in texts for text in some if text]))
        place: dict[bytes, int] = {}
        found = [[place.setdefault(next(firsts), len(place)) if text else -1 for text in some] for some in texts]
        return [np.array(some, dtype=np.int64) for some in found], list(place)

    def token(self, spelling: bytes) -> Token:
        """The token of the base that is spelled so."""
        found = self._tokens.get(spelling)
        if found is None:
            if len(self._tokens) > _MOST_KNOWN:
                self._tokens = {}
            found = self._tokens[spelling] = self.base.token(spelling)
        return found

    def _begins(self, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
        """The first id of each token's usual spelling, and how many it has."""
        whole = [token for token in tokens if utf8_prefix(token) == len(token)]
        paths = dict(zip(whole, self.local.encode(whole), strict=True))
        found = [paths.get(token) or [self._longest(token)] for token in tokens]
        return [(path[0], len(path)) for path in found]

    def _longest(self, token: bytes) -> int:
        """The longest local token that begins a token which no tokenizer cuts, because it is part of a character."""
        found = (self.local.id_of(token[:end]) for end in range(len(token), 0, -1))
        return next((index for index in found if index is not None), -1)

    def _leading(self, token: bytes) -> Ids:
        ids = [self.local.id_of(token[:end]) for end in range(1, len(token))]
        return np.array([index for index in ids if index is not None], dtype=np.int64)

    def _covering(self, token: bytes) -> Ids:
        if self._codes is not None:
            start, end = self._starts.get(token, (0, 0))
            return self._order[start:end]
        ids = self.local.beginning_with(token)
        longer = [self.local.beginning_with(token + more) for more in self.base.extensions(token)] if len(ids) else []
        return ids[~np.isin(ids, np.concatenate(longer))] if longer else ids

    # -- the table ------------------------------------------------------------------------------------------------

    def _tabulate(self, base: Vocabulary) -> None:
        spelling = self.local.spelling
        written = [index for index, text in enumerate(spelling) if text]
        events = [text for text in dict.fromkeys(base.spelling) if text]
        codes = np.array(_codes(self.local, base, written, events))
        order = np.argsort(codes, kind="stable")
        ordered = codes[order]
        borders = np.flatnonzero(np.diff(ordered, prepend=-2, append=len(events) + 1))
        self._order = np.array(written, dtype=np.int64)[order]
        self._starts = {
            events[ordered[start]]: (int(start), int(end)) for start, end in pairwise(borders) if ordered[start] >= 0
        }
        own = [spelling[written[i]] or b"" for i in np.flatnonzero(codes < 0)]  # not a token of the base: itself
        codes[codes < 0] = range(len(events), len(events) + len(own))
        self._codes = np.full(len(spelling), -1, dtype=np.int64)
        self._codes[written] = codes
        self._events = events + own


def _codes(local: Vocabulary, base: Vocabulary, written: Sequence[int], events: Sequence[bytes]) -> Ids:
    """(w,): the place among the base's events of F of each local token that writes something; -1 where it has none."""

    def make() -> Ids:
        known = {text: code for code, text in enumerate(events)}
        firsts = base.first([local.spelling[index] or b"" for index in written])
        return np.array([known.get(text, -1) for text in firsts], dtype=np.int64)

    told = None if local.digest is None or base.digest is None else digest(["first", local.digest, base.digest])
    codes = kept(told, lambda arrays: arrays["codes"], make, lambda found: {"codes": found})
    fits = codes.shape == (len(written),) and codes.dtype == np.int64 and bool((codes < len(events)).all())
    return codes if fits else make()
