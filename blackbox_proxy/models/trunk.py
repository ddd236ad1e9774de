"""One text in one model, read once: `Trunk` grows, is cut back, and branches; `Slots` are the texts that a model keeps.

A text may be given anew each time: what agrees with the last one is not read again. Texts that begin alike (few-shot
prompts, chats, re-runs) copy that beginning from one another, also from one that is just being read.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from blackbox_proxy.models.packed import KV, Reader, Segment

_WORTH_COPYING = 32  # tokens shared with another text from which on copying its cache beats reading them again
_CHEAP_LOSS = 8  # tokens that are cut off a kept text without leaving it behind: a replaced token and its draft
_LONG = 128  # tokens from which on a text is read alone, since another may begin alike
_CHUNK = 512  # tokens of a long text that are read in one pass
_MOST_NODES = 256  # of a tree's nodes that are read in one pass
_KEPT_ROWS = 4  # of a text's last places what follows is kept: the next draft asks about its tail's places again


class Weights(Protocol):
    """What a text is read with: a `CausalLM`."""

    caches: bool
    trees: bool
    reader: Reader
    device: torch.device

    @property
    def active(self) -> Callable[[], AbstractContextManager[object]]: ...
    def check_length(self, length: int, what: str = ...) -> None: ...
    def forward(self, ids: torch.Tensor, cache: Any | None, keep: int = ...) -> torch.Tensor: ...
    def plain(self, ids: Sequence[int], keep: int = ...) -> torch.Tensor: ...
    def normalised(self, logits: torch.Tensor) -> torch.Tensor: ...


class Trunk:
    """The cache of what has been read of one text. Safe for threads, one call at a time.

    Where the model takes packs (`lm.trees`) all this is packed.py's; else paths are run as a batch over a copied cache,
    or, where there is no cache at all (`lm.caches` false), over the whole text.
    """

    def __init__(self, lm: Weights, slots: Slots | None = None) -> None:
        self.lm = lm
        self.ids: list[int] = []
        self.lock = threading.RLock()
        self._kv = KV()
        self._said: dict[int, torch.Tensor] = {}  # what follows the first so many of `ids`, (outputs,)
        self._dynamic: Any = None
        self._slots = slots

    # -- what is asked --------------------------------------------------------------------------------------------

    def read(self, ids: Sequence[int]) -> None:
        """Have these ids in the cache; nothing is asked about them."""
        if self.lm.trees and len(ids) > 0:
            with self.lock, self._alone(list(ids), 0):
                self._fill(list(ids), leave=0, whole=True)

    def advance(self, ids: Sequence[int], keep: int = 1) -> torch.Tensor:
        """Read `ids` (the whole text); log probabilities (keep, V) of what follows its last `keep` tokens."""
        return self.lm.normalised(self.logits(ids, keep=keep))

    def branch(self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Log probabilities (1 + m, V) after the text `ids` and after each of m nodes of a tree that grows from its
        end.

        Node i is `tokens[i]` after node `parents[i]` < i, or after the text itself where that is -1.
        """
        return self.lm.normalised(self.logits(ids, parents, tokens))

    def logits(
        self, ids: Sequence[int], parents: Sequence[int] = (), tokens: Sequence[int] = (), keep: int = 1
    ) -> torch.Tensor:
        """Logits (keep + m, outputs) of what follows the last `keep` tokens of `ids`, and each node of a tree.

        A node follows an earlier one, or (-1) the end of the text, (-2) its last token but one, and so on. One pass
        where the model takes packs, over what it has not read yet. Nodes that continue the text in a row, from the
        first on, stay read. Raises ContextTooLong.
        """
        depth = [0] * len(tokens)
        for i, parent in enumerate(parents):
            depth[i] = parent + 2 if parent < 0 else depth[parent] + 1
        self.lm.check_length(len(ids) + max(depth, default=0), "the text")
        if not 0 <= keep <= len(ids) or not (keep or tokens):
            raise ValueError(f"keep must be between 1 and the {len(ids)} tokens of the text")
        with self.lock:
            if self.lm.trees:
                return self._packed(list(ids), parents, tokens, keep)
            parts = [self._in_dynamic(ids, keep)] if keep else []
            if tokens and min(parents) < -1:
                parts += [self.lm.plain(way)[-1:] for way in _ways(ids, parents, tokens)]
            elif tokens:
                parts.append(self._branch_in_batch(ids, parents, tokens))
            return torch.cat(parts)

    # -- packs ----------------------------------------------------------------------------------------------------

    def _packed(self, ids: list[int], parents: Sequence[int], tokens: Sequence[int], keep: int) -> torch.Tensor:
        m, chain = len(tokens), 0
        while chain < m and parents[chain] == chain - 1:
            chain += 1
        if keep == 0 and chain == 0 and m > _MOST_NODES:
            return self._in_parts(ids, parents, tokens)
        whole = [*ids, *tokens[:chain]]
        first = len(ids) - keep + 1  # tokens before the first place that is asked about
        with self._alone(ids, keep):
            told = self._told(whole, first)
            passed = max(0, len(told) - keep)  # nodes of the chain that need not be read again
            leave = max(0, keep - len(told))
            rest = self._fill(whole[: len(ids) + passed], leave=leave)
            n, new = len(rest), m - passed
            tree = None
            if chain < m:
                tree = [*range(-1, n - 1), *(n + parent - passed for parent in parents[passed:])]
            if n + new:
                told.append(self._pass([*rest, *tokens[passed:]], [*range(n - leave, n), *range(n, n + new)], tree))
        found = torch.cat(told)
        self._kv.length -= m - chain
        self.ids = whole
        last = range(max(first, len(whole) - _KEPT_ROWS + 1), len(whole) + 1)
        self._said |= {length: found[length - first].clone() for length in last if length not in self._said}
        self._said = {length: row for length, row in self._said.items() if length > len(whole) - _KEPT_ROWS}
        return found

    def _told(self, whole: list[int], first: int) -> list[torch.Tensor]:
        """What follows the first `first` tokens of a text, and one more, and so on, as far as it is known, (1, outputs)
        each.
        """
        told: list[torch.Tensor] = []
        shared = _shared(self.ids, whole) if first in self._said else 0
        while first <= shared and first in self._said:
            told.append(self._said[first][None])
            first += 1
        return told

    def forget_rows(self) -> None:
        """They are as wide as the vocabulary: only texts in use keep them."""
        self._said = {}

    def _in_parts(self, ids: list[int], parents: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """The nodes that hang on a text, tree by tree in passes of about `_MOST_NODES`: in one, each would be held
        against all of the others to see nothing of them.
        """
        with self._alone(ids, 0):
            self._fill(ids, leave=0, whole=True)
            trees: list[list[int]] = []  # the nodes that hang on the text, each with what hangs on it
            owner: list[list[int]] = []
            for i, parent in enumerate(parents):
                if parent < 0:
                    trees.append([])
                owner.append(trees[-1] if parent < 0 else owner[parent])
                owner[i].append(i)
            found: torch.Tensor | None = None
            part: list[int] = []
            for tree in trees:
                part += tree
                if len(part) >= _MOST_NODES or tree is trees[-1]:
                    place = {node: at for at, node in enumerate(part)}
                    own = [place.get(parents[i], parents[i]) for i in part]
                    said = self._pass([tokens[i] for i in part], list(range(len(part))), own)
                    self._kv.length -= len(part)
                    if found is None:
                        found = said.new_empty(len(parents), said.shape[1])
                    found[torch.tensor(part, device=said.device)] = said
                    part = []
        assert found is not None
        return found

    @contextmanager
    def _alone(self, ids: list[int], leave: int) -> Iterator[None]:
        """While a long text is read: who comes meanwhile may find that this was the beginning of his."""
        if self._slots is None or len(ids) - leave - _shared(self.ids, ids) < _LONG:
            yield
            return
        with self._slots.reading:
            yield

    def _fill(self, ids: list[int], leave: int, whole: bool = False) -> list[int]:
        """Have of `ids` in the cache what other texts have read, and all but a last part that fits into one pass
        (with `whole` that, too); what is still to be read, at least the last `leave`.
        """
        shared = min(_shared(self.ids, ids), len(ids) - leave)
        if len(ids) - leave - shared >= _WORTH_COPYING and self._slots is not None:
            shared = self._borrowed(self._slots, ids, shared, leave)
        self._kv.length = min(self._kv.length, shared)
        self.ids = ids[:shared]
        self._said = {length: row for length, row in self._said.items() if length <= shared}
        while len(ids) - len(self.ids) > (0 if whole else _CHUNK + leave):
            part = ids[len(self.ids) : len(self.ids) + _CHUNK][: len(ids) - leave - len(self.ids)]
            self._pass(part, [len(part) - 1], None)
            self.ids = ids[: len(self.ids) + len(part)]
        return ids[len(self.ids) :]

    def _borrowed(self, slots: Slots, ids: list[int], shared: int, leave: int) -> int:
        """Take over what another text has read of `ids`, where that is much; how much of `ids` there is then."""
        donor = slots.longest(ids, self)
        if donor is None or not donor.lock.acquire(blocking=False):
            return shared
        try:
            length = min(_shared(donor.ids, ids), donor._kv.length, len(ids) - leave)
            if length < shared + _WORTH_COPYING:
                return shared
            self._kv, self.ids = donor._kv.copy(length), ids[:length]
            return length
        finally:
            donor.lock.release()

    def _pass(self, ids: Sequence[int], keep: Sequence[int], parents: Sequence[int] | None) -> torch.Tensor:
        return self.lm.reader.read(Segment(self._kv, ids, keep, parents), self.lm.active)

    # -- models that take none ------------------------------------------------------------------------------------

    def _in_dynamic(self, ids: Sequence[int], keep: int) -> torch.Tensor:
        if not self.lm.caches:
            return self.lm.plain(ids, keep)
        limit = min(_shared(self.ids, ids), len(ids) - keep)
        if self._dynamic is None or limit == 0:
            self._dynamic, limit = DynamicCache(), 0
        elif self._dynamic.get_seq_length() > limit:
            self._dynamic.crop(limit - self._dynamic.get_seq_length())
        self.ids = []  # if the pass fails, nothing is known of the cache
        rows = self.lm.forward(torch.tensor([list(ids[limit:])], device=self.lm.device), self._dynamic, keep)[0]
        self.ids = list(ids)
        return rows

    def _branch_in_batch(self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """(m, outputs) by one batch of paths, each with its own copy of the cache (or without one)."""
        paths: list[list[int]] = []  # node -> the nodes from the text's end to it
        for i, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), i])
        leaves = [paths[i] for i in sorted(set(range(len(tokens))) - set(parents))]
        width = max(len(path) for path in leaves)
        padded = [[tokens[i] for i in path] + [tokens[path[-1]]] * (width - len(path)) for path in leaves]
        if self.lm.caches:
            if self.ids != list(ids):
                self._in_dynamic(ids, 1)
            cache = copy.deepcopy(self._dynamic)
            cache.batch_repeat_interleave(len(leaves))
            rows = self.lm.forward(torch.tensor(padded, device=self.lm.device), cache)
        else:
            whole = torch.tensor([[*ids, *path] for path in padded], device=self.lm.device)
            rows = self.lm.forward(whole, None, keep=width)
        result: list[torch.Tensor | None] = [None] * len(tokens)
        for row, path in zip(rows, leaves, strict=True):
            for place, i in enumerate(path):
                result[i] = row[place]
        return torch.stack([row for row in result if row is not None])


class Slots:
    """The texts that one model keeps when nobody needs them any more, and those that are lent.

    count: how many are kept; most_tokens: of all that are kept together. The least recently used go first.
    """

    def __init__(self, lm: Weights, count: int = 8, most_tokens: int = 1 << 16) -> None:
        self._lm = lm
        self._count = max(count, 1)
        self._most_tokens = most_tokens
        self._lock = threading.Lock()
        self._kept: list[Trunk] = []
        self._lent: weakref.WeakSet[Trunk] = weakref.WeakSet()
        self.reading = threading.RLock()  # held while a long text is read: the next one may begin alike

    @property
    def tokens(self) -> int:
        """Tokens that are kept, those of lent texts left out."""
        return sum(len(trunk.ids) for trunk in self._kept)

    def take(self, ids: Sequence[int]) -> Trunk:
        """A text to be continued with `ids`: the kept one that begins alike, if little of it is lost, or a new one."""
        wanted = list(ids)
        with self._lock:
            shared = {id(one): _shared(one.ids, wanted) for one in self._kept}
            cheap = [one for one in self._kept if len(one.ids) - shared[id(one)] <= _CHEAP_LOSS]
            trunk = max(cheap, key=lambda one: shared[id(one)], default=None)
            most = max(self._kept, key=lambda one: shared[id(one)], default=None)
            if most is not None and (trunk is None or shared[id(most)] >= shared[id(trunk)] + _WORTH_COPYING):
                # Worth a copy, which a new text makes; the oldest would have to go for it, so it is cut instead.
                full = len(self._kept) >= self._count
                trunk = most if full and most is self._kept[0] else None
            if trunk is not None:
                self._kept.remove(trunk)
            trunk = trunk or Trunk(self._lm, self)
            self._lent.add(trunk)
            return trunk

    def give(self, trunk: Trunk) -> None:
        """Nobody needs this text now."""
        with self._lock:
            self._lent.discard(trunk)
            if not trunk.ids:
                return
            trunk.forget_rows()
            self._kept = [one for one in self._kept if one.ids != trunk.ids[: len(one.ids)]]  # it begins this one
            self._kept.append(trunk)
            while len(self._kept) > self._count or (self.tokens > self._most_tokens and len(self._kept) > 1):
                del self._kept[0]

    def longest(self, ids: Sequence[int], but: Trunk) -> Trunk | None:
        """The text, kept or lent, that shares the longest beginning with `ids`."""
        with self._lock:
            others = [trunk for trunk in (*self._kept, *self._lent) if trunk is not but]
        return max(others, key=lambda one: _shared(one.ids, ids), default=None)

    def advance(self, ids: list[int], keep: int) -> torch.Tensor:
        """Read `ids`; log probabilities (keep, V) of what follows its last `keep`."""
        trunk = self.take(ids)
        rows = trunk.advance(ids, keep)  # if this fails the trunk is gone, and with it a half-written cache
        self.give(trunk)
        return rows

    def clear(self) -> None:
        with self._lock:
            self._kept = []


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    if one == other[: len(one)]:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _ways(ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> list[list[int]]:
    """The whole text up to each node."""
    ways: list[list[int]] = []
    for parent, token in zip(parents, tokens, strict=True):
        before = ways[parent] if parent >= 0 else list(ids[: len(ids) + parent + 1])
        ways.append([*before, token])
    return ways
