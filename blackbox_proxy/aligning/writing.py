"""How a token of the base is written after a tail, node by node: by the local tokenizer's own spelling of both
together, or beside that, and what its beginnings are cut as. A matter of two vocabularies, and remembered with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blackbox_proxy.aligning.tree import Path

if TYPE_CHECKING:
    from blackbox_proxy.aligning.alignment import Alignment

Nodes = tuple[tuple[Path, bytes], ...]
"""Nodes, as paths from where the tail starts, and the text at each."""


@dataclass(frozen=True, slots=True)
class Written:
    """path: the usual spelling; None where the local vocabulary cannot write the token. before: the nodes on the way to
    its end; beside: other nodes at which it may be completed: blanks at its end are cut otherwise once a word follows
    ("    " is "   " and " def"). begun: what the usual spelling of each of its beginnings passes off that path.
    goes_on: whether it is on the way to a longer token of the base.
    """

    path: Path | None
    before: Nodes = ()
    beside: Nodes = ()
    begun: tuple[Nodes, ...] = ()
    goes_on: bool = False


def written(alignment: Alignment, wanted: Iterable[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], Written]:
    """How each token is written, by tail and token; what is not remembered is cut in one batch."""
    found = {key: alignment.written.get(key) for key in wanted}
    missing = [key for key, known in found.items() if known is None]
    if missing:
        begun = [_texts_begun(alignment, *key) for key in missing]
        alignment.spell([tail + token for tail, token in missing] + [text for texts in begun for text in texts])
        for key, texts in zip(missing, begun, strict=True):
            found[key] = alignment.written.keep(key, _written(alignment, *key, texts))
    return {key: known for key, known in found.items() if known is not None}


def _written(alignment: Alignment, tail: bytes, token: bytes, begun: Sequence[bytes]) -> Written:
    path = alignment.canonical(tail + token)
    if path is None:
        return Written(None)
    (other,) = before_a_word(alignment, [tail + token])
    chains = [_off(alignment, alignment.canonical(text) or (), path) for text in begun]
    return Written(
        path,
        tuple(nodes_of(alignment, path)[:-1]),
        () if other is None else _off(alignment, other, path),
        tuple(dict.fromkeys(chain for chain in chains if chain)),
        alignment.may_go_on(token),
    )


def _texts_begun(alignment: Alignment, tail: bytes, token: bytes) -> list[bytes]:
    """The texts that are a token's beginnings after the tail, from which some local token goes on; and the tail's own,
    from which one goes on to the end of the token, at least.
    """
    local = alignment.local
    own = [tail[:end] for end in range(1, len(tail)) if len(local.beginning_with(tail[end:] + token))]
    return own + [tail + token[:end] for end in range(1, len(token)) if len(local.beginning_with(token[end:]))]


def _off(alignment: Alignment, path: Path, main: Path) -> Nodes:
    """The nodes of a path that are not on the main one."""
    return tuple(at for at in nodes_of(alignment, path) if at[0] != main[: len(at[0])])


def nodes_of(alignment: Alignment, path: Path) -> list[tuple[Path, bytes]]:
    """Each node of a path, its end as well, and the text there."""
    found: list[tuple[Path, bytes]] = [((), b"")]
    for end, index in enumerate(path, 1):
        found.append((path[:end], found[-1][1] + (alignment.local.spelling[index] or b"")))
    return found


def before_a_word(alignment: Alignment, texts: Sequence[bytes]) -> list[Path | None]:
    """The paths of texts that end in two blanks, up to where the last of them is left to the word that follows (GPT-2's
    pattern and all that came of it); None for others.
    """
    blank = {i: text[:-1] for i, text in enumerate(texts) if len(text) > 1 and text[-2:].isspace()}
    found = dict(zip(blank, alignment.canonicals(list(blank.values())), strict=True)) if blank else {}
    return [found.get(i) for i in range(len(texts))]


def begun_by(alignment: Alignment, tail: bytes, node: Path) -> bytes:
    """What of a node's text is behind the tail once the first token on its way reaches there; b"" where none does."""
    reached = (text[len(tail) :] for _, text in nodes_of(alignment, node) if len(text) > len(tail))
    return next(reached, b"")
