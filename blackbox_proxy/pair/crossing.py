"""What two vocabularies say of each other, whatever the text: which local tokens begin with which token of the base.

A local token t that stands right after x causes the base's token F(t), the first one when the base cuts it. So the row
after x alone already splits into the base's events,

    R(c | x)  =  sum over local t with F(t) = c of  p(t | x)                 `covering(c)` are those t

and misses only what is written in several local tokens: c in pieces (`leading(c)` are the shorter local tokens that
begin it, `usual(c)` is how the local tokenizer writes it), and what goes on from a token that ends where c ends.
estimated.py uses this as an estimate with an error bar, alignment.py and masses.py have the exact sums.

F is a table over the local vocabulary where the base's is known, made once and kept on disk; of a base that is learned
from its candidates it is found in the sorted local vocabulary, candidate by candidate.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from platformdirs import user_cache_path

from blackbox_proxy.text.vocabulary import Cutter, Ids, LearnedVocabulary, Vocabulary, utf8_prefix

VARIABLE = "BLACKBOX_PROXY_TABLES"
"""Environment variable: 0 keeps no tables on disk, anything else but 1 is the folder for them."""

_MOST_KNOWN = 200_000  # tokens of the base whose relations are remembered
_NONE: Ids = np.empty(0, dtype=np.int64)


class Relations(NamedTuple):
    """How one token of the base stands to the local vocabulary: `covering` and `leading` ids (see above), the first id
    of its usual spelling (-1 where it has none), and whether the local tokenizer goes on from it to write a longer
    token of the base ("2" before "23").
    """

    covering: Ids
    leading: Ids
    begins: int
    goes_on: bool


class Crossing:
    """The relations between one local vocabulary and one base. Safe for threads: entries are added, never changed."""

    def __init__(self, local: Vocabulary, base: Cutter) -> None:
        self.local = local
        self.base = base
        self._known: dict[bytes, Relations] = {}
        self._order, self._starts = _NONE, dict[bytes, tuple[int, int]]()
        self._first: list[bytes] | None = None
        self._passed: frozenset[int] | None = None  # ids that the usual spelling of some base token goes on from
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
            for token, begins in zip(missing, self._begins(missing), strict=True):
                known[token] = Relations(self._covering(token), self._leading(token), begins, self._goes_on(token))
        return [known[token] for token in tokens]

    def first(self, ids: Sequence[int]) -> list[bytes]:
        """F of some local ids; b"" of those that write nothing."""
        if self._first is not None:
            return [self._first[index] for index in ids]
        texts = [self.local.spelling[index] or b"" for index in ids]
        found = iter(self.base.first([text for text in texts if text]))
        return [next(found) if text else b"" for text in texts]

    def _begins(self, tokens: Sequence[bytes]) -> list[int]:
        whole = [token for token in tokens if utf8_prefix(token) == len(token)]
        paths = dict(zip(whole, self.local.encode(whole), strict=True))
        return [paths[token][0] if paths.get(token) else self._longest(token) for token in tokens]

    def _longest(self, token: bytes) -> int:
        """The longest local token that begins a token which no tokenizer cuts, because it is part of a character."""
        found = (self.local.id_of(token[:end]) for end in range(len(token), 0, -1))
        return next((index for index in found if index is not None), -1)

    def _leading(self, token: bytes) -> Ids:
        ids = [self.local.id_of(token[:end]) for end in range(1, len(token))]
        return np.array([index for index in ids if index is not None], dtype=np.int64)

    def _covering(self, token: bytes) -> Ids:
        if self._first is not None:
            start, end = self._starts.get(token, (0, 0))
            return self._order[start:end]
        ids = self.local.beginning_with(token)
        longer = [self.local.beginning_with(token + more) for more in self.base.extensions(token)] if len(ids) else []
        return ids[~np.isin(ids, np.concatenate(longer))] if longer else ids

    def _goes_on(self, token: bytes) -> bool:
        if self._passed is None:
            return bool(self.base.extensions(token))
        own = self.local.id_of(token)
        return own is None or own in self._passed

    # -- the table ------------------------------------------------------------------------------------------------

    def _tabulate(self, base: Vocabulary) -> None:
        spelling = self.local.spelling
        written = [index for index, text in enumerate(spelling) if text]
        kept = _kept_table(self.local, base, written)
        events = [text for text in dict.fromkeys(base.spelling) if text]
        first = [b""] * len(spelling)
        if kept is None:
            known = {text: code for code, text in enumerate(events)}
            firsts = base.first([spelling[index] or b"" for index in written])
            codes = np.array([known.get(text, -1) for text in firsts], dtype=np.int32)
            whole = [text for text in events if utf8_prefix(text) == len(text)]
            passed = np.array(sorted({path[0] for path in self.local.encode(whole) if len(path) > 1}), dtype=np.int32)
            _keep_table(self.local, base, codes, passed)
        else:
            codes, passed = kept
        for index, code in zip(written, codes.tolist(), strict=True):
            first[index] = events[code] if code >= 0 else (spelling[index] or b"")
        self._passed = frozenset(passed.tolist())
        order = np.argsort(codes, kind="stable")
        ordered = codes[order]
        borders = np.flatnonzero(np.diff(ordered, prepend=-2, append=len(events) + 1))
        self._order = np.array(written, dtype=np.int64)[order]
        self._starts = {
            events[ordered[start]]: (int(start), int(end)) for start, end in pairwise(borders) if ordered[start] >= 0
        }
        self._first = first


# -- the table on disk ------------------------------------------------------------------------------------------------


def _path(local: Vocabulary, base: Vocabulary) -> Path | None:
    wished = os.environ.get(VARIABLE, "1")
    if wished == "0":
        return None
    folder = user_cache_path("blackbox-proxy") / "tables" if wished == "1" else Path(wished)
    name = hashlib.sha256(f"1 {local.fingerprint} {base.fingerprint}".encode()).hexdigest()[:32]
    return folder / f"{name}.npz"


def _kept_table(local: Vocabulary, base: Vocabulary, written: Sequence[int]) -> tuple[Ids, Ids] | None:
    """The table from the file, if there is one and what it says of some of the tokens is true."""
    path = _path(local, base)
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            codes, passed = kept["codes"], kept["passed"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    events = [text for text in dict.fromkeys(base.spelling) if text]
    if codes.dtype != np.int32 or codes.shape != (len(written),) or not len(written):
        return None
    if codes.max() >= len(events) or codes.min() < -1:
        return None
    some = range(0, len(written), max(1, len(written) // 512))
    firsts = base.first([local.spelling[written[place]] or b"" for place in some])
    told = [events[codes[place]] if codes[place] >= 0 else None for place in some]
    same = all(code is None or code == text for code, text in zip(told, firsts, strict=True))
    return (codes, passed) if same else None


def _keep_table(local: Vocabulary, base: Vocabulary, codes: Ids, passed: Ids) -> None:
    path = _path(local, base)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, codes=codes, passed=passed)
        os.replace(file.name, path)
    except OSError:  # a table that cannot be kept is made again
        return


class LearningCrossings:
    """The crossings of a base that is learned while its text grows: one for each place, from what its way has shown."""

    def __init__(self, local: Vocabulary) -> None:
        self.local = local

    def at(self, shown: Sequence[bytes]) -> Crossing:
        learned = LearnedVocabulary()
        learned.learn(shown)
        return Crossing(self.local, learned)
