"""One step, measured: how far the proxy moved its token, and what kind of token it is.

The shift is that of the proxy-tuning paper (Liu et al. 2024, arXiv 2401.08565, section 6.1): the chosen token's
probability under p less that under q. Wherever the two are compared, q is normalised over the same candidates as p:
leaving tokens out is no shift.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.types import Floats, Step, Usage

Kind = Literal[
    "word start",
    "continuation",
    "unspaced letter",
    "number",
    "punctuation",
    "symbol",
    "white space",
    "part of a character",
    "end",
    "other",
]
Side = Literal["left", "right", ""]

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO", "YI ")
_EQUATION = re.compile(rb"(?P<left>[\d($][\d ,.()$%+*/x-]*)=(?P<right>[ $-]*\d[\d,.]*)")


@dataclass(frozen=True, slots=True)
class Place:
    """One step, measured. `chosen`: the chosen token's index among the step's candidates, None where there are none
    (the base ended the text unseen); all probabilities are 0 then.

    q, p: the chosen token's probability before and after, q normalised over the candidates. shift: p - q (the paper's
    Delta_t). distance: total variation between q and p over the candidates, the largest change in the probability of
    any set of them. beyond: the base had not shown the chosen token. tail_mass: the share of p on such tokens. side:
    of an equation. in_text: false for tokens that a stop string cut from the text.
    """

    index: int
    token: bytes
    kind: Kind
    side: Side
    chosen: int | None
    q: float
    p: float
    distance: float
    tail_mass: float
    covered_mass: float
    changed: bool
    beyond: bool
    drafted: bool
    local: bool
    end: bool
    in_text: bool
    usage: Usage

    @property
    def shift(self) -> float:
        return self.p - self.q


def measure(steps: Sequence[Step], prompt: str = "", text: str | None = None) -> tuple[Place, ...]:
    """Every step of one text. `prompt`: what stands before it; `text`: what was kept of it, all by default."""
    sides = _sides(b"".join(step.token for step in steps))
    kept = _kept(steps, text)
    places, at, before = [], 0, prompt.encode("utf-8", "replace")[-8:]
    for index, step in enumerate(steps):
        kind = kind_of(step.token, before, end=step.end)
        first = at + len(step.token) - len(step.token.lstrip())
        side: Side = next((side for start, stop, side in sides if start <= first < stop), "")
        places.append(_place(index, step, kind, side, step.end or index < kept))
        at += len(step.token)
        before = (before + step.token)[-8:]
    return tuple(places)


def _kept(steps: Sequence[Step], text: str | None) -> int:
    """The number of steps, from the first, that left something in the text or could have; bytes that are no character
    are in no text.
    """
    decoder, written = codecs.getincrementaldecoder("utf-8")("ignore"), 0
    for index, step in enumerate(steps):
        if text is not None and written >= len(text) and not step.end:
            rest = decoder.decode(b"".join(later.token for later in steps[index:]))
            return index if rest else len(steps)
        written += len(decoder.decode(step.token))
    return len(steps)


def _place(index: int, step: Step, kind: Kind, side: Side, in_text: bool) -> Place:
    candidates, chosen = step.candidates, chosen_index(step)
    q = p = distance = tail_mass = 0.0
    if chosen is not None:
        before, after = before_of(candidates.log_q), np.exp(candidates.log_p)
        q, p = float(before[chosen]), float(after[chosen])
        distance = 0.5 * float(np.abs(after - before).sum())
        tail_mass = float(after[candidates.tail].sum())
    return Place(
        index=index,
        token=step.token,
        kind=kind,
        side=side,
        chosen=chosen,
        q=q,
        p=p,
        distance=distance,
        tail_mass=tail_mass,
        covered_mass=step.covered_mass,
        changed=step.changed,
        beyond=chosen is not None and bool(candidates.tail[chosen]),
        drafted=step.drafted,
        local=step.local,
        end=step.end,
        in_text=in_text,
        usage=step.usage,
    )


def before_of(log_q: Floats) -> Floats:
    """q normalised over the candidates, shape (c,)."""
    normalised: Floats = np.exp(log_q - logsumexp(log_q))
    return normalised


def chosen_index(step: Step) -> int | None:
    """Where the chosen token stands among the step's candidates; None where there are none."""
    for i, token in enumerate(step.candidates.tokens):
        if step.end or token.end:
            same = step.end and token.end
        elif step.token_id is not None and token.id is not None:
            same = token.id == step.token_id
        else:
            same = token.bytes == step.token
        if same:
            return i
    return None


def kind_of(token: bytes, before: bytes, *, end: bool = False) -> Kind:
    """What a token is, from its first character that is no white space and the one before it."""
    if end:
        return "end"
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return "part of a character"
    core = text.strip()
    if not core:
        return "white space" if text else "other"
    joined = core[0] == text[0] and before.decode("utf-8", "ignore")[-1:].isalpha()
    if joined and len(core) > 1 and core[0] in "'’" and core[1].isalpha():
        return "continuation"
    return _KINDS.get(unicodedata.category(core[0])[0], _letter)(core[0], joined)


def _letter(first: str, joined: bool) -> Kind:
    if unicodedata.name(first, "").startswith(_UNSPACED):
        return "unspaced letter"
    return "continuation" if joined else "word start"


_KINDS: dict[str, Callable[[str, bool], Kind]] = {
    "N": lambda *_: "number",
    "P": lambda *_: "punctuation",
    "S": lambda *_: "symbol",
    "Z": lambda *_: "white space",
    "C": lambda *_: "other",
}


def _sides(written: bytes) -> list[tuple[int, int, Side]]:
    """Where the two sides of equations between numbers stand, as in "3 * 5 = 15"."""
    found: list[tuple[int, int, Side]] = []
    for match in _EQUATION.finditer(written):
        found += [(*match.span("left"), "left"), (*match.span("right"), "right")]
    return found
