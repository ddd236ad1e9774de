"""One of the two models in one session: what is needed of it, its prompt, and what it has already read for good.

A `Model` has a vocabulary and opens a `Text`, which gives log probabilities after places of one growing text. On this
machine it is models/lm.py (see transformers.py); behind a server it is what the server shows (remote.py), and that may
be less than everything (models/outputs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.models.outputs import Outputs
from blackbox_proxy.text.vocabulary import Ids, Vocabulary, is_unfinished, utf8_prefix
from blackbox_proxy.types import END, Floats, How, Position, Scores, Token

T = TypeVar("T")

Wanted = Mapping[int, Collection[int]]
"""Row -> the ids whose log probability there must be the model's own, even where it shows only some."""

Named = Mapping[int, Mapping[int, float]]
"""The same, with the log probability up to which each may be guessed: then it does not matter."""


class Text(Protocol):
    """One growing text in one model. It may be given anew each time; what agrees with the last one is not read again.

    `wanted` None: rows as they are shown. Else the ids named are asked for where they are not
    shown. It means nothing where rows are whole.
    """

    def read(self, ids: Sequence[int]) -> None:
        """Have these ids read; nothing is asked about them. Raises ContextTooLong."""
        ...

    def advance(self, ids: Sequence[int], keep: int = 1, wanted: Wanted | None = None) -> Outputs:
        """What follows each of the last `keep` tokens of the text `ids`. Raises ContextTooLong."""
        ...

    def branch(
        self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int], wanted: Wanted | None = None
    ) -> Outputs:
        """What follows the text `ids` (row 0) and each of m nodes of a tree that grows from its end.

        Node i (row i + 1) is `tokens[i]` after node `parents[i]` < i, or after the text itself where that is -1.
        """
        ...

    def close(self) -> None:
        """The text is not needed any more."""
        ...


@runtime_checkable
class ReadText(Text, Protocol):
    """A text that is read on this machine."""

    def more(self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> Outputs:
        """What follows each of m >= 1 nodes of a tree on the text `ids`: row i is node i. A parent of -2 is the last
        token but one of the text, and so on.
        """
        ...


class AskedText(Text, Protocol):
    """A text that a server is asked about."""

    def places(self, texts: Sequence[Sequence[int]], wanted: Named) -> Outputs:
        """What follows each of these texts, which begin as this one does or might."""
        ...


class Model(Protocol):
    """A causal LM of `size` ids. `partial`: its rows may leave ids out, and asking takes time but not this machine."""

    @property
    def name(self) -> str: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def size(self) -> int: ...
    @property
    def partial(self) -> bool: ...

    def check_length(self, length: int, what: str = "the prompt") -> None:
        """Raise ContextTooLong if `length` tokens do not fit this model's window."""
        ...

    def text(self, ids: Sequence[int]) -> ReadText | AskedText:
        """A text that is going to begin with `ids`."""
        ...


def side_by_side(sides: Sequence[Side], call: Callable[[int], T]) -> list[T]:
    """call(i) for each side: at the same time where the models are elsewhere, one after the other on this machine."""
    if len(sides) < 2 or not all(side.model.partial for side in sides):
        return [call(i) for i in range(len(sides))]
    with ThreadPoolExecutor(len(sides)) as pool:
        return list(pool.map(call, range(len(sides))))


class Side:
    """One of the two models in one session: its prompt, its text, and the ids that end a text."""

    def __init__(self, model: Model, prompt: Sequence[int], ends: frozenset[int]) -> None:
        self.model = model
        self.prompt = list(prompt)
        self.text = model.text(self.prompt)
        self.ends: Ids = np.array(sorted(i for i in ends if i < model.size), dtype=np.int64)
        self._read, self._rest = self._split_prompt()
        self._start = (list(self._read), self._rest)
        self._taken: list[Token] = []

    def _split_prompt(self) -> tuple[list[int], bytes]:
        """The prompt's ids up to the last place that nothing can retokenise, and the text after it.

        Special tokens are a barrier: no text is taken back across one.
        """
        vocabulary = self.model.vocabulary
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
        """The ids that are settled and the bytes after it, once these tokens of the base are issued.

        Tokens that were issued before may have been taken back: a local draft is.
        """
        if list(issued[: len(self._taken)]) != self._taken:
            self._read, self._rest = list(self._start[0]), self._start[1]
            self._taken = []
        self._rest += b"".join(token.bytes or b"" for token in issued[len(self._taken) :])
        self._taken = list(issued)
        ids, self._rest = self.settle(self._rest)
        self._read += ids
        return self._read, self._rest

    def settle(self, text: bytes) -> tuple[list[int], bytes]:
        """The tokens of the part of `text` that nothing can retokenise any more, and the rest."""
        vocabulary = self.model.vocabulary
        settled: list[int] = []
        whole = utf8_prefix(text)
        while whole < len(text) and not is_unfinished(text[whole:]):  # a stray byte, which belongs to no character
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


def until_unknown(positions: Sequence[Position]) -> Sequence[Position]:
    """The positions up to the first whose token's bytes are unknown: what follows those cannot be scored."""
    unknown = next((j for j, position in enumerate(positions) if position.token.bytes is None), len(positions))
    return positions[: unknown + 1]


def with_end(proposed: Sequence[Token], log_masses: Floats, log_end: float, count: int) -> list[Token]:
    """The end among these tokens, likeliest first; log_masses (c,), nats, is theirs."""
    tokens = list(proposed)
    if np.isfinite(log_end):
        tokens.insert(int(np.searchsorted(-log_masses, -log_end, side="right")), END)
    return tokens[:count]


def scores_of(
    columns: Sequence[Floats] | Floats,
    how: Sequence[How],
    error: Floats | None = None,
    apart: Floats | None = None,
    own: Sequence[Floats] | Floats | None = None,
    parts: Parts | None = None,
) -> Scores:
    """Offsets from the masses of expert and (if there is one) anti-expert; a token known to neither gets a neutral one.
    error (c,): by how much each offset may be off, infinitely where a model that shows only some ids was not asked;
    apart (c,): each mass by itself, as much where it is not given; own: of each column what is the token's alone.
    parts: the places that the tokens are at, where those are several.

    Neutral is 0 with an anti-expert. Without one there is no ratio, and 0 would be a certainty: the least offset of
    the others at its place.
    """
    expert = columns[0]
    antiexpert = columns[1] if len(columns) > 1 else np.zeros(len(expert))
    known = np.isfinite(expert) & np.isfinite(antiexpert)
    if known.all():
        offset, kinds = expert - antiexpert, tuple(how)
    else:
        offset = np.zeros(len(expert))
        offset[known] = expert[known] - antiexpert[known]
        if len(columns) == 1:
            parts = Parts.of([len(expert)]) if parts is None else parts
            least = -parts.most(np.where(known, -offset, -np.inf))
            offset = np.where(known, offset, parts.each(np.where(np.isfinite(least), least, 0.0)))
        kinds = tuple(kind if ok else "neutral" for kind, ok in zip(how, known.tolist(), strict=True))
    error = np.zeros(len(expert)) if error is None else np.where(known, error, 0.0)
    apart = error if apart is None else np.where(known, apart, 0.0)
    if own is None:
        return Scores(expert, antiexpert, offset, kinds, error, apart)
    both = np.stack([own[0], own[1] if len(own) > 1 else np.ones(len(expert))])
    return Scores(expert, antiexpert, offset, kinds, error, apart, both)
