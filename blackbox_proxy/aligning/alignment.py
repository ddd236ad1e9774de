"""One event, two tokenizers: the local mass of "the base's next token is c".

The event is about text, not about strings that happen to match: a local model that writes a text y (token by token)
has caused the base's token F(y), the first token when the base's tokenizer cuts y. So the local token paths from the
end of the text are partitioned by F, and the mass of c is the sum over the paths that fall to it:

    M(c | x)  =  sum over paths (node, t) with F(text of the path after x) = c  of  p(node) * p(t | node)

A path ends, and is given to its F, as soon as it leaves the set of *nodes* whose next-token distributions are
computed. The mass of a node is handed on to its continuations and never counted itself, so whatever nodes are chosen,
the events are disjoint and add up to one; more nodes bring each event closer to its true meaning. The nodes chosen
("canonical"): for every candidate c and every place in it where a local token could bridge to its end, the local
tokenizer's own spelling of the text up to there; and the full spelling of c where the local tokenizer would go on to
spell a longer token of the base ("2" before "23"). Where a model puts weight on a path that has not decided its event
(it is about to write a word that the base has as one token and did not show), that path becomes a node too
(`refined`). "all" takes every spelling of every undecided text instead: exact, and only feasible for small
vocabularies.

Nothing of x before the last place where a local pre-token starts can be retokenised by what follows, so paths start
there (`tail`, the bytes from that place to the end of x); those that disagree with the tail are left out, and the
mass of all that agree, P(x), divides every event.

This file is about bytes and ids; masses.py sums up what the models say, aligned.py runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.aligning.tree import Path
from blackbox_proxy.errors import PairError
from blackbox_proxy.text.memo import Memo
from blackbox_proxy.text.vocabulary import Cutter, Ids, Vocabulary, is_unfinished, utf8_prefix

if TYPE_CHECKING:
    from blackbox_proxy.aligning.writing import Written

Segmentations = Literal["canonical", "all"]
BUDGET = 24  # candidates of one position, the likeliest first, that get nodes whatever the models think of them
_ALL_LIMIT = 20_000  # nodes of one position under "all"
_EXACT_LIMIT = 4_096  # ids for which F is evaluated one by one when a whole vocabulary must be split
_REFINED = 256  # ids of one distribution for which it is evaluated in any case, the likeliest first
_TABLED = 1_024  # ids of a local vocabulary up to which F is evaluated for all of them at every node
_CACHED_SETS = 20_000
_CACHED_PATHS = 2_000
_CACHED_WAYS = 5_000
_CACHED_MASKS = 256
_NO_BYTE = 256

_NO_IDS: Ids = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of one position: paths from the place where its tail starts, parents first, and the text of each."""

    tail: bytes
    paths: tuple[Path, ...]
    texts: tuple[bytes, ...]

    def after(self, index: int) -> bytes:
        """The part of a node's text that lies after x; b"" for nodes at or before the end of x."""
        return self.texts[index][len(self.tail) :]

    def missing(self, index: int) -> bytes:
        """The part of the tail that a node has still to write; b"" from the end of x on."""
        return self.tail[len(self.texts[index]) :]


class Alignment:
    """Everything that holds between one base vocabulary and one local vocabulary, computed once and remembered."""

    def __init__(self, local: Vocabulary, base: Cutter, segmentations: Segmentations = "canonical") -> None:
        self.local = local
        self.base = base
        self.segmentations = segmentations
        self._sets: Memo[tuple[bytes, bytes, bytes], Ids] = Memo(_CACHED_SETS)
        self._completing: Memo[tuple[bytes, bytes, bytes], Ids] = Memo(_CACHED_SETS)
        self._masks: Memo[bytes, tuple[NDArray[np.bool_], bool]] = Memo(_CACHED_MASKS)
        self._tables: Memo[tuple[bytes, bytes], Ids] = Memo(_CACHED_SETS)
        self._following: Memo[bytes, frozenset[bytes]] = Memo(_CACHED_SETS)
        self._onward: Memo[bytes, NDArray[np.bool_]] = Memo(_CACHED_MASKS)
        self._own: Memo[tuple[bytes, bytes], frozenset[Path]] = Memo(_CACHED_PATHS)
        self.written: Memo[tuple[bytes, bytes], Written] = Memo(_CACHED_WAYS)  # by tail and token, see writing.py
        self._codes: dict[bytes, int] = {}
        self._spelled: dict[bytes, Path | None] = {}

    # -- the event of every id: small local vocabularies ---------------------------------------------------------------

    @property
    def tabled(self) -> bool:
        return len(self.local) <= _TABLED

    def code(self, token: bytes) -> int:
        """A number for a token of the base, as it stands in tables."""
        return self._codes.setdefault(token, len(self._codes))

    @property
    def codes(self) -> int:
        """How many tokens of the base have a code so far."""
        return len(self._codes)

    def table(self, missing: bytes, after: bytes) -> Ids:
        """(V,): the code of the event that each local id leads to at such a node; -1 where it leads to none.

        An id that does not write on (special, or the end) settles what is written; one that disagrees with x, or only
        reaches its end, has no event.
        """
        key = (missing, after)
        found = self._tables.get(key)
        if found is not None:
            return found
        own = self.code(self.base.first([after])[0]) if after else -1
        table = np.full(len(self.local), own, dtype=np.int64)
        table[self.local.beginning_with(b"")] = -1
        ids = self.local.beginning_with(missing)
        added = [after + (self.local.spelling[int(i)] or b"")[len(missing) :] for i in ids]
        real = [place for place, text in enumerate(added) if text]
        firsts = self.base.first([added[place] for place in real])
        table[ids[real]] = [self.code(first) for first in firsts]
        return self._tables.keep(key, table)

    # -- the ids that lead to an event: large local vocabularies -------------------------------------------------------

    def leading_to(self, missing: bytes, after: bytes, token: bytes) -> Ids:
        """Local ids t that, at a node with `after` written and `missing` still to write, complete x and make `token`
        the first token of the base: t begins with missing + the rest of the token, and F(after + what t adds) =
        token.
        """
        key = (missing, after, token)
        found = self._sets.get(key)
        if found is not None:
            return found
        if token.startswith(after) and len(token) > len(after):
            ids = self.local.beginning_with(missing + token[len(after) :])
        else:  # F may fall back behind what is written ("ab" + "c" cut as "a", "bc")
            ids = self._changing(after)
            ids = ids if self._is_exact(ids) else _NO_IDS
        return self._sets.keep(key, self.making(ids, missing, after, token))

    def completing(self, missing: bytes, after: bytes, token: bytes) -> Ids | None:
        """Local ids that begin with missing + the rest of the token and make it the base's first one; None where too
        many begin so for all of them to be cut.
        """
        key = (missing, after, token)
        found = self._completing.get(key)
        if found is None:
            ids = self.local.beginning_with(missing + token[len(after) :])
            if len(ids) > _EXACT_LIMIT:
                return None
            found = self._completing.keep(key, self.making(ids, missing, after, token))
        return found

    def making(self, ids: Ids, missing: bytes, after: bytes, token: bytes) -> Ids:
        """Those of the ids that, at a node with `after` written and `missing` still to write, make `token` the base's
        first one.
        """
        if not len(ids):
            return ids
        spelling = self.local.spelling
        firsts = self.base.first([after + (spelling[index] or b"")[len(missing) :] for index in ids.tolist()])
        return ids[[first == token for first in firsts]]

    def staying(self, after: bytes, row: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which local ids t (V,) leave F(after + t) = F(after): the base's first token is settled, not lengthened.

        Special and end tokens stay (the text stops there). Where thousands of ids would have to be cut, those after
        which a longer token of the base fits are taken to lengthen it, and only the likeliest under `row` are cut one
        by one.
        """
        mask, exact = self._staying_by_rule(after)
        if exact:
            return mask
        likely = np.argpartition(row, -_REFINED)[-_REFINED:] if len(row) > _REFINED else np.arange(len(row))
        return self._cut_one_by_one(after, likely[~mask[likely]], mask.copy())

    def _staying_by_rule(self, after: bytes) -> tuple[NDArray[np.bool_], bool]:
        found = self._masks.get(after)
        if found is not None:
            return found
        mask = np.ones(len(self.local), dtype=np.bool_)
        changing = self._changing(after)
        mask[changing] = False
        exact = self._is_exact(changing)
        if exact:
            self._cut_one_by_one(after, changing, mask)
        return self._masks.keep(after, (mask, exact))

    def _changing(self, after: bytes) -> Ids:
        """Local ids that can change F once `after` is written: those after which a longer token of the base fits."""
        if self.segmentations == "all":
            return self.local.beginning_with(b"")
        ranges = [self.local.beginning_with(extension) for extension in self.base.extensions(after)]
        return np.concatenate(ranges) if ranges else _NO_IDS

    def _is_exact(self, changing: Ids) -> bool:
        return self.segmentations == "all" or len(changing) <= _EXACT_LIMIT

    def _cut_one_by_one(self, after: bytes, ids: Ids, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        own = self.base.first([after])[0]
        firsts = self.base.first([after + (self.local.spelling[int(i)] or b"") for i in ids])
        mask[ids] = [first == own for first in firsts]
        return mask

    @cached_property
    def _on_the_way(self) -> frozenset[bytes]:
        """The texts that the local tokenizer has written when it is about to go on with a token of the base."""
        assert isinstance(self.base, Vocabulary)
        return self.local.on_the_way_to(self.base)

    def goes_on(self, text: bytes) -> bool:
        """Whether a text that stands after x may, spelled as usual, still become a longer token of the base."""
        if isinstance(self.base, Vocabulary):
            return text in self._on_the_way
        return bool(self.base.extensions(text))

    def may_go_on(self, text: bytes) -> bool:
        """The same in front of any other text: how blanks are cut hangs on what comes next ("    " alone is one token,
        before "def" it is "   " and " def").
        """
        return self.goes_on(text) or (text[-1:].isspace() and bool(self.following(text)))

    def following(self, token: bytes) -> frozenset[bytes]:
        """The single bytes with which longer tokens of the base go on from this one."""
        found = self._following.get(token)
        if found is None:
            found = self._following.keep(token, self.base.following(token))
        return found

    def going_on(self, token: bytes, ids: Ids) -> NDArray[np.bool_]:
        """Which of the local ids begin with a byte with which longer tokens of the base go on from this one, (c,)."""
        found = self._onward.get(token)
        if found is None:
            found = np.zeros(_NO_BYTE + 1, dtype=np.bool_)
            found[[following[0] for following in self.following(token)]] = True
            self._onward.keep(token, found)
        among: NDArray[np.bool_] = found[self._initials[ids]]
        return among

    @cached_property
    def _initials(self) -> NDArray[np.int16]:
        """The first byte of each local id, `_NO_BYTE` where it has none."""
        return np.array([text[0] if text else _NO_BYTE for text in self.local.spelling], dtype=np.int16)

    # -- which nodes are computed ----------------------------------------------------------------------------------

    def nodes(self, tail: bytes, tokens: Sequence[bytes]) -> Nodes:
        """The nodes of a position whose candidates are `tokens`, most likely first."""
        exhaustive = self.segmentations == "all"
        paths = self._all_paths(tail) if exhaustive else self._canonical_paths(tail, tokens[:BUDGET])
        return self._closed(tail, paths)

    def own_paths(self, tail: bytes, token: bytes) -> frozenset[Path]:
        """The nodes that a position would have if this token were its only candidate."""
        found = self._own.get((tail, token))
        if found is None:
            paths = self._all_paths(tail) if self.segmentations == "all" else self._canonical_paths(tail, [token])
            found = self._own.keep((tail, token), frozenset(self._closed(tail, paths).paths))
        return found

    def refined(self, nodes: Nodes, undecided: Iterable[bytes]) -> Nodes:
        """The same nodes and those for texts after x of which it is still open what token of the base they begin."""
        paths = set(nodes.paths)
        for text in undecided:
            paths.update(self._spellings(nodes.tail + text))
        return self._closed(nodes.tail, paths)

    def reaching(self, nodes: Nodes, tokens: Iterable[bytes]) -> Nodes:
        """The same nodes and those from which one local token completes the usual spelling of each of these tokens."""
        paths = set(nodes.paths)
        for token in tokens:
            paths.update(path[:-1] for path in self._spellings(nodes.tail + token) if path)
        return self._closed(nodes.tail, paths)

    def _closed(self, tail: bytes, paths: Iterable[Path]) -> Nodes:
        closed = {path[:end]: None for path in paths for end in range(len(path) + 1)}
        ordered = tuple(sorted(closed, key=lambda path: (len(path), path)))
        return Nodes(tail, ordered, tuple(self._text(path) for path in ordered))

    def _text(self, path: Path) -> bytes:
        return b"".join(self.local.spelling[index] or b"" for index in path)

    def _canonical_paths(self, tail: bytes, tokens: Iterable[bytes]) -> set[Path]:
        wanted = {tail: None}
        whole: dict[bytes, None] = {}
        for token in tokens:
            text = tail + token
            whole[text] = None
            if self.goes_on(token):
                wanted[text] = None
            for split in range(max(0, len(text) - self.local.longest), len(text)):
                written = text[len(tail) : split] if split > len(tail) else b""
                if len(self.leading_to(tail[split:], written, token)):
                    wanted[text[:split]] = None
        self.spell([*wanted, *whole])
        paths: set[Path] = {()}
        for text in wanted:
            paths.update(self._spellings(text))
        for text in whole:
            paths.update(path[:-1] for path in self._spellings(text) if path)
        return paths

    def spell(self, texts: Iterable[bytes]) -> None:
        """Fill the memo of canonical spellings for the whole characters of these texts, in one batch."""
        if len(self._spelled) > _CACHED_SETS:
            self._spelled.clear()
        heads = {text[: utf8_prefix(text)]: None for text in texts if text not in self._spelled}
        missing = [head for head in heads if head not in self._spelled]
        if not missing:
            return
        for head, ids in zip(missing, self.local.encode(missing), strict=True):
            path = tuple(ids)
            self._spelled[head] = path if self._text(path) == head else None  # None: has unknown characters

    def _spellings(self, text: bytes) -> list[Path]:
        """The canonical spelling of a text; bytes of an unfinished character at its end are spelled in every way."""
        whole = utf8_prefix(text)
        if text[:whole] not in self._spelled:
            self.spell([text])
        head, rest = self._spelled[text[:whole]], text[whole:]
        if head is None:
            return []
        if not rest or is_unfinished(rest):
            return [head + path for path in self._every_spelling(rest)]
        stray = self.local.id_of(rest[:1])  # a byte that belongs to no character stands for itself
        return [] if stray is None else [(*head, stray, *path) for path in self._spellings(rest[1:])]

    def _every_spelling(self, text: bytes) -> list[Path]:
        if not text:
            return [()]
        found = []
        for end in range(1, len(text) + 1):
            index = self.local.id_of(text[:end])
            if index is not None:
                found += [(index, *rest) for rest in self._every_spelling(text[end:])]
        return found

    def canonical(self, text: bytes) -> Path | None:
        """The usual spelling of a text; None where the local vocabulary cannot write it."""
        return self._spelled.get(text) or next(iter(self._spellings(text)), None)

    def canonicals(self, texts: Sequence[bytes]) -> list[Path | None]:
        """The usual spellings of several texts, cut in one batch."""
        self.spell(texts)
        return [self.canonical(text) for text in texts]

    def _all_paths(self, tail: bytes) -> set[Path]:
        """Every path that agrees with the tail and whose text after x may still begin a longer token of the base."""
        paths: set[Path] = {()}
        frontier: list[tuple[Path, bytes]] = [((), b"")]
        while frontier:
            path, text = frontier.pop()
            for index, spelling in enumerate(self.local.spelling):
                longer = text + (spelling or b"")
                if not spelling or not (longer.startswith(tail) or tail.startswith(longer)):
                    continue
                after = longer[len(tail) :]
                if not after or self.base.extensions(after):
                    paths.add((*path, index))
                    frontier.append(((*path, index), longer))
            if len(paths) > _ALL_LIMIT:
                raise PairError(
                    "there are too many spellings for segmentations='all'", hint="Use segmentations='canonical'."
                )
        return paths
