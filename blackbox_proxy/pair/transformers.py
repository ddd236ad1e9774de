"""The pair from two local models: `TransformersPair`, and the sessions that score one text with it.

Where the base spells like the pair (same id <-> bytes), a session reads the id's own log probability: plain
proxy-tuning. Everywhere else it lays out the tree of `alignment`, runs each model once over it, and answers with the
masses of events.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError, VocabularyMismatch
from blackbox_proxy.lm import CausalLM, Trunk, load_causal_lm
from blackbox_proxy.logspace import logsumexp
from blackbox_proxy.pair.alignment import Alignment, Masses, Nodes, Segmentations
from blackbox_proxy.pair.protocol import Row, Session
from blackbox_proxy.pair.tree import Path, TokenTree
from blackbox_proxy.types import END, Floats, How, Position, Prompt, Rendering, Scores, Token
from blackbox_proxy.vocabulary import (
    Cutter,
    Ids,
    LearnedVocabulary,
    Vocabulary,
    VocabularyTokens,
    is_ids,
    is_unfinished,
    utf8_prefix,
)

Rows = NDArray[np.float32]

_HEAVY = 0.01  # mass from which on a path is followed until it has decided its event
_FOLLOWED = 16  # such paths per model and round
_ROUNDS = 8  # tokens that a path is followed at most
_LEAST = 1e-6  # mass below which nothing is proposed


class TransformersPair:
    """A tuned (expert) and an untuned (anti-expert) causal LM with the same vocabulary, on this machine.

    expert, antiexpert: folder or hub id (safetensors only), or a loaded CausalLM. Without anti-expert, log A = 0.
    `expert_prompt` and `antiexpert_prompt` say how each is shown the prompt: "raw", "chat" (its own template) or a
    function from the prompt to text. Raises ModelUnavailable, VocabularyMismatch, InputError.
    """

    def __init__(
        self,
        expert: str | CausalLM,
        antiexpert: str | CausalLM | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        expert_prompt: Rendering = "raw",
        antiexpert_prompt: Rendering = "raw",
        trust_remote_code: bool = False,
        segmentations: Segmentations = "canonical",
    ) -> None:
        def load(model: str | CausalLM) -> CausalLM:
            if isinstance(model, CausalLM):
                return model
            return load_causal_lm(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

        models = [(load(expert), expert_prompt)]
        if antiexpert is not None:
            models.append((load(antiexpert), antiexpert_prompt))
            _check_vocabularies(models[0][0], models[1][0])
        self._models = models
        self._segmentations: Segmentations = segmentations
        self._alignments: dict[int, tuple[Vocabulary, Alignment]] = {}
        self._lock = threading.Lock()

    @property
    def has_antiexpert(self) -> bool:
        return len(self._models) > 1

    @property
    def vocabulary(self) -> Vocabulary:
        """The spelling that expert and anti-expert share."""
        return self._models[0][0].vocabulary

    def __repr__(self) -> str:
        names = ", ".join(lm.name for lm, _ in self._models)
        return f"TransformersPair({names})"

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        if is_ids(prompt):
            raise InputError(
                "a prompt of token ids means nothing to a pair with a vocabulary of its own",
                hint="Give the prompt as text or messages.",
            )
        for lm, rendering in self._models:
            length = len(lm.vocabulary.prompt_ids(prompt, rendering))
            if length == 0:
                raise InputError("the prompt is empty", hint="Give at least one character of text.")
            lm.check_length(length + 1)

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        ends = frozenset[int]().union(*(lm.vocabulary.end_ids for lm, _ in self._models))
        sides = [_Side(lm, lm.vocabulary.prompt_ids(prompt, rendering), ends) for lm, rendering in self._models]
        if base is not None and base.spells_like(self.vocabulary):
            return _PlainSession(sides, base, self._lock)
        return _AlignedSession(sides, self._alignment(base), self._lock)

    def _alignment(self, base: Vocabulary | None) -> Alignment:
        if base is None:  # what is learned of an unknown base belongs to one text at a time
            return Alignment(self.vocabulary, LearnedVocabulary(), self._segmentations)
        with self._lock:
            known = self._alignments.get(id(base))
            if known is None:
                known = (base, Alignment(self.vocabulary, base, self._segmentations))
                self._alignments[id(base)] = known
            return known[1]

    def close(self) -> None:
        self._alignments.clear()


def _check_vocabularies(expert: CausalLM, antiexpert: CausalLM) -> None:
    if expert.vocabulary.spells_like(antiexpert.vocabulary):
        return
    ours, theirs = expert.vocabulary.spelling, antiexpert.vocabulary.spelling
    differing = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if (a or b"") != (b or b"")), None)
    place = min(len(ours), len(theirs)) if differing is None else differing
    a, b = (spelling[place] if place < len(spelling) else None for spelling in (ours, theirs))
    raise VocabularyMismatch(
        f"expert {expert.name} and anti-expert {antiexpert.name} have different vocabularies: "
        f"id {place} is {a!r} in one and {b!r} in the other",
        hint="The anti-expert must be the expert before tuning. The base may have any vocabulary.",
    )


class _Side:
    """One of the two models in one session: its prompt, its trunk, and the ids that end a text."""

    def __init__(self, lm: CausalLM, prompt: Sequence[int], ends: frozenset[int]) -> None:
        self.lm = lm
        self.prompt = list(prompt)
        self.trunk = Trunk(lm)
        self.ends: Ids = np.array(sorted(i for i in ends if i < lm.size), dtype=np.int64)
        self._read, self._rest = self._split_prompt()
        self._start = (list(self._read), self._rest)
        self._taken = 0

    def _split_prompt(self) -> tuple[list[int], bytes]:
        """The prompt's ids up to the last place that nothing can retokenise, and the text after it.

        Special tokens are a barrier: no text is taken back across one.
        """
        vocabulary = self.lm.vocabulary
        barrier = 0
        for i, index in enumerate(self.prompt):
            if not (vocabulary.spelling[index] if index < len(vocabulary) else None):
                barrier = i + 1
        head, tail = self.prompt[:barrier], self.prompt[barrier:]
        spelled = [vocabulary.spelling[index] or b"" for index in tail]
        taken = _tokens_within(spelled, vocabulary.boundary(b"".join(spelled)))
        if not head and not taken:
            taken = 1  # a model must have read something before it can say what follows
        return head + tail[:taken], b"".join(spelled[taken:])

    def text_after(self, issued: Sequence[Token]) -> tuple[list[int], bytes]:
        """The trunk's ids and the bytes after it, once these tokens of the base are issued."""
        if len(issued) < self._taken:
            self._read, self._rest = list(self._start[0]), self._start[1]
            self._taken = 0
        self._rest += b"".join(token.bytes or b"" for token in issued[self._taken :])
        self._taken = len(issued)
        ids, self._rest = self.settle(self._rest)
        self._read += ids
        return self._read, self._rest

    def settle(self, text: bytes) -> tuple[list[int], bytes]:
        """The tokens of the part of `text` that nothing can retokenise any more, and the rest."""
        vocabulary = self.lm.vocabulary
        settled: list[int] = []
        whole = utf8_prefix(text)
        while whole < len(text) and not is_unfinished(
            text[whole:]
        ):  # a stray byte: no character can take it up any more
            stray = vocabulary.id_of(text[whole : whole + 1])
            settled += [*vocabulary.encode([text[:whole]])[0], *([] if stray is None else [stray])]
            text = text[whole + 1 :]
            whole = utf8_prefix(text)
        boundary = vocabulary.boundary(text)
        if boundary == 0:
            return settled, text
        ids = vocabulary.encode([text[:whole]])[0]
        spelled = [vocabulary.spelling[index] or b"" for index in ids]
        taken = _tokens_within(spelled, boundary)
        return settled + ids[:taken], text[sum(map(len, spelled[:taken])) :]


def _tokens_within(spelled: Sequence[bytes], length: int) -> int:
    """How many of the first tokens fit into the first `length` bytes."""
    total = 0
    for count, spelling in enumerate(spelled):
        total += len(spelling)
        if total > length:
            return count
    return len(spelled)


# -- same spelling: plain proxy-tuning ------------------------------------------------------------------------------


class _PlainSession:
    """Ids are shared with the base: E(c) is the probability of that id after exactly the issued ids."""

    def __init__(self, sides: Sequence[_Side], base: Vocabulary, lock: threading.Lock) -> None:
        self._sides = sides
        self._base = base
        self._lock = lock

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        drafted = [position.token.id for position in positions]
        if None in drafted[:-1]:  # what follows an unidentified token cannot be scored
            positions = positions[: drafted.index(None) + 1]
        text = [i for i in (*(token.id for token in issued), *drafted[: len(positions) - 1]) if i is not None]
        with self._lock:
            rows = [_columns(side.trunk.advance(side.prompt + text, keep=len(positions))) for side in self._sides]
        ends = [side.ends for side in self._sides]
        return [_PlainRow([row[j] for row in rows], ends, self._base) for j in range(len(positions))]

    def close(self) -> None:
        self._sides = ()


class _PlainRow:
    def __init__(self, rows: Sequence[Rows], ends: Sequence[Ids], base: Vocabulary) -> None:
        self._rows = rows
        self._ends = ends
        self._base = base
        self._log_end = [logsumexp(row[ids].astype(np.float64)) for row, ids in zip(rows, ends, strict=True)]

    def score(self, tokens: Sequence[Token]) -> Scores:
        ids, ending = _ids_of(tokens, self._base)
        columns = []
        for row, log_end in zip(self._rows, self._log_end, strict=True):
            known = (ids >= 0) & (ids < len(row))
            column = np.where(known, row[np.where(known, ids, 0)].astype(np.float64), -np.inf)
            column[ending] = log_end
            columns.append(column)
        return _scores(columns, ["exact"] * len(tokens))

    def propose(self, count: int) -> list[Token]:
        row = self._rows[0].copy()
        row[self._ends[0]] = -np.inf
        top = np.argpartition(row, -count)[-count:] if len(row) > count else np.arange(len(row))
        top = top[np.argsort(-row[top], kind="stable")]
        proposed = [(self._base.token_of(int(i)), float(row[i])) for i in top if np.isfinite(row[i])]
        return _with_end(proposed, self._log_end[0], count)


def _ids_of(tokens: Sequence[Token], base: Vocabulary) -> tuple[Ids, NDArray[np.bool_]]:
    """Ids (c,), -1 where unknown, and which tokens end the text."""
    if isinstance(tokens, VocabularyTokens):
        return tokens.ids, np.isin(tokens.ids, list(base.end_ids))
    ids = np.array([-1 if token.id is None else token.id for token in tokens], dtype=np.int64)
    return ids, np.array([token.end for token in tokens], dtype=np.bool_)


# -- different spellings: events ------------------------------------------------------------------------------------


class _AlignedSession:
    """Scores candidates of a base with another (or an unknown) vocabulary as events."""

    def __init__(self, sides: Sequence[_Side], alignment: Alignment, lock: threading.Lock) -> None:
        self._sides = sides
        self._alignment = alignment
        self._lock = lock

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        drafted = [position.token for position in positions]
        unknown = [j for j, token in enumerate(drafted) if token.bytes is None]
        positions = positions[: unknown[0] + 1] if unknown else positions  # what follows unknown bytes cannot be scored
        candidates = [_spellings(position.tokens) for position in positions]
        if isinstance(self._alignment.base, LearnedVocabulary):
            seen = [token.bytes for token in (*issued, *drafted) if token.bytes]
            self._alignment.base.learn([*seen, *(spelling for row in candidates for spelling in row)])
        with self._lock:
            self._alignment.refresh()
            plans: dict[bytes, list[tuple[Path, Nodes]]] = {}
            views: list[list[_View]] = []
            for side in self._sides:
                read, rest = side.text_after(issued)
                if rest not in plans:  # both models usually stand at the same text and share one tree
                    plans[rest] = self._lay_out(side, rest, drafted, candidates)
                places = [_View(side, (*read, *root), nodes) for root, nodes in plans[rest]]
                _run(side, read, [(root, view) for (root, _), view in zip(plans[rest], places, strict=True)])
                views.append(places)
        rows = [
            _AlignedRow([column[j] for column in views], self._alignment, self._lock) for j in range(len(positions))
        ]
        return list(rows)

    def _lay_out(
        self, side: _Side, rest: bytes, drafted: Sequence[Token], candidates: Sequence[Sequence[bytes]]
    ) -> list[tuple[Path, Nodes]]:
        """For each position the place where its own tail starts, as a path from the trunk, and its nodes from there."""
        laid = []
        root: Path = ()
        for j, tokens in enumerate(candidates):
            if j > 0:
                rest += drafted[j - 1].bytes or b""
            settled, rest = side.settle(rest)
            root += tuple(settled)
            laid.append((root, self._alignment.nodes(rest, tokens)))
        return laid

    def close(self) -> None:
        self._sides = ()


@dataclass(slots=True, eq=False)
class _View:
    """One position in one model: the ids up to the place where its tail starts, its nodes, and their rows once they
    are run.
    """

    side: _Side
    read: tuple[int, ...]
    nodes: Nodes
    rows: list[Rows] = field(default_factory=list)


def _run(side: _Side, read: Sequence[int], views: Sequence[tuple[Path, _View]]) -> None:
    """One forward pass over the nodes of all these positions."""
    tree = TokenTree()
    places = [[tree.add(root + path) for path in view.nodes.paths] for root, view in views]
    rows = _columns(side.trunk.branch(read, tree.parents, tree.tokens))
    for (_, view), found in zip(views, places, strict=True):
        view.rows = [rows[i] for i in found]


def _spellings(tokens: Sequence[Token]) -> list[bytes]:
    """The candidates that are text: neither end, nor special, nor of unknown bytes."""
    return [token.bytes for token in tokens if token.bytes and not token.end]


class _AlignedRow:
    def __init__(self, views: Sequence[_View], alignment: Alignment, lock: threading.Lock) -> None:
        self._views = views
        self._alignment = alignment
        self._lock = lock
        self._known: dict[bytes, tuple[list[float], How]] = {}

    @cached_property
    def _masses(self) -> list[Masses]:
        """Masses under each model, once no path of weight is left that has not decided its event.

        Most positions need no more than the pass that scored them. Further ones are run here where a model is about to
        write something that the base did not show: it is followed until the base's first token of it is known.
        """
        seen: set[bytes] = set()
        for _ in range(_ROUNDS):
            masses = [Masses(self._alignment, view.nodes, view.rows, view.side.ends) for view in self._views]
            leaves = [text for found in masses for text, _ in found.leaves(_HEAVY, _FOLLOWED)]
            undecided = [text for text in dict.fromkeys(leaves) if text not in seen and self._alignment.goes_on(text)]
            if not undecided:
                break
            seen.update(undecided)
            with self._lock:
                for view in self._views:
                    view.nodes = self._alignment.refined(view.nodes, undecided)
                    _run(view.side, view.read, [((), view)])
        return masses

    def score(self, tokens: Sequence[Token]) -> Scores:
        found = [self._score(token) for token in tokens]
        columns = [np.array([values[i] for values, _ in found]) for i in range(len(self._masses))]
        return _scores(columns, [how for _, how in found])

    def _score(self, token: Token) -> tuple[list[float], How]:
        nothing: tuple[list[float], How] = ([-np.inf] * len(self._masses), "neutral")
        if token.end:
            values = [masses.end() for masses in self._masses]
            return (values, "exact") if all(map(math.isfinite, values)) else nothing
        if not token.bytes:
            return nothing
        if token.bytes not in self._known:
            values = [masses.event(token.bytes) for masses in self._masses]
            how: How = "exact"
            if not all(map(math.isfinite, values)):
                values, how = [self._along(masses, token.bytes) for masses in self._masses], "prefix"
            self._known[token.bytes] = (values, how) if all(map(math.isfinite, values)) else nothing
        return self._known[token.bytes]

    def _along(self, masses: Masses, token: bytes) -> float:
        path = self._alignment.canonical(masses.nodes.tail + token)
        return masses.along(path) if path else -np.inf

    def propose(self, count: int) -> list[Token]:
        leaves = self._masses[0].leaves(_LEAST, 2 * count)
        texts = [(text, mass) for text, mass in leaves if not self._alignment.goes_on(text)]
        firsts = self._alignment.base.first([text for text, _ in texts])
        found: dict[bytes, float] = {}
        for first, (_, mass) in zip(firsts, texts, strict=True):
            found[first] = float(np.logaddexp(found.get(first, -np.inf), mass))
        ordered = sorted(found.items(), key=lambda item: -item[1])[:count]
        base: Cutter = self._alignment.base
        return _with_end([(base.token(spelling), mass) for spelling, mass in ordered], self._masses[0].end(), count)


# -- shared ---------------------------------------------------------------------------------------------------------


def _columns(rows: torch.Tensor) -> Rows:
    result: Rows = rows.float().cpu().numpy()
    return result


def _with_end(proposed: list[tuple[Token, float]], log_end: float, count: int) -> list[Token]:
    if np.isfinite(log_end):
        proposed = sorted([*proposed, (END, log_end)], key=lambda pair: -pair[1])
    return [token for token, _ in proposed[:count]]


def _scores(columns: Sequence[Floats], how: Sequence[How]) -> Scores:
    """Offsets from the masses of expert and (if there is one) anti-expert; a token known to neither gets a neutral one.

    Neutral is 0 with an anti-expert. Without one there is no ratio, and 0 would be a certainty: the least offset of
    the others.
    """
    expert = columns[0]
    antiexpert = columns[1] if len(columns) > 1 else np.zeros(len(expert))
    known = np.isfinite(expert) & np.isfinite(antiexpert)
    offset = np.zeros(len(expert))
    offset[known] = expert[known] - antiexpert[known]
    if len(columns) == 1 and not known.all():
        offset[~known] = offset[known].min() if known.any() else 0.0
    kinds = tuple(kind if ok else "neutral" for kind, ok in zip(how, known.tolist(), strict=True))
    return Scores(expert, antiexpert, offset, kinds)
