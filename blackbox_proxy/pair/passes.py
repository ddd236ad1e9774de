"""One model over one draft: what it says at each node of each position, read here (`Reading`) or asked of a server
(`Asking`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blackbox_proxy.aligning.tree import Path, TokenTree
from blackbox_proxy.models.outputs import Outputs
from blackbox_proxy.pair.contended import Way
from blackbox_proxy.pair.side import AskedText, ReadText


@dataclass(slots=True, eq=False)
class View:
    """One position in one model: where its tail starts, as a path from what is read, the tail, and its usual spelling
    (None where the vocabulary cannot write it). `beside`: another, of a tail that ends in blanks. `places`: node ->
    what the model says there. `ways`: what is summed. `wanted`: node -> the ids there of which the model's own word is
    wanted, should it show only some, each with the log probability up to which it does not matter.
    """

    root: Path
    tail: bytes
    at_x: Path | None
    beside: Path | None = None
    places: dict[Path, tuple[Outputs, int]] = field(default_factory=dict)
    ways: dict[bytes, Way] = field(default_factory=dict)
    wanted: dict[Path, dict[int, float]] = field(default_factory=dict)

    @property
    def after_x(self) -> tuple[Outputs, int]:
        """What the model says after x; behind a tail that it cannot write, after what is before that."""
        return self.places[self.at_x or ()]

    def spelled(self) -> Iterable[Path]:
        """The nodes of the tail's spellings."""
        for path in (self.at_x or (), self.beside or ()):
            for end in range(len(path) + 1):
                yield path[:end]

    def want(self, node: Path, ids: Iterable[int], enough: float = -math.inf) -> None:
        wanted = self.wanted.setdefault(node, {})
        for index in ids:
            wanted[index] = min(enough, wanted.get(index, math.inf))

    def want_steps(self, path: Path, enough: Callable[[Path], float] = lambda _: -math.inf) -> None:
        """Want what the way to the end of a path hangs on."""
        for end, index in enumerate(path):
            self.want(path[:end], (index,), enough(path[:end]))


class Pass(Protocol):
    def run(self, views: Sequence[View]) -> None:
        """Over the draft: what the model says at the nodes of the tails' spellings, in one `Outputs` for all."""
        ...

    def run_more(self, views: Sequence[View]) -> int:
        """Over the nodes of the views' ways that are not known yet; how many there were."""
        ...


def pass_over(
    text: ReadText | AskedText, read: Sequence[int], views: Sequence[View], ahead: Sequence[Sequence[Path]]
) -> Pass:
    """Over a draft after the ids `read`; ahead: for each view, nodes that will be wanted in all likelihood."""
    return Reading(text, read, views, ahead) if isinstance(text, ReadText) else Asking(text, read, ahead)


class Reading:
    """A model of this machine: the draft's own path is read, and what hangs on it is not read with it again."""

    def __init__(
        self, text: ReadText, read: Sequence[int], views: Sequence[View], ahead: Sequence[Sequence[Path]]
    ) -> None:
        self._text = text
        self._read = list(read)
        self._chain = views[-1].root + (views[-1].at_x or ())
        self._tree = TokenTree()
        self._tree.add(self._chain)
        for view, nodes in zip(views, ahead, strict=True):
            for path in (view.at_x or (), view.beside or (), *nodes):
                self._tree.add(view.root + path)
        self._outputs: Outputs | None = None

    def run(self, views: Sequence[View]) -> None:
        outputs = self._outputs = self._text.branch(self._read, self._tree.parents, self._tree.tokens)
        for view in views:
            for path in view.spelled():
                view.places[path] = (outputs, self._tree.add(view.root + path))

    def run_more(self, views: Sequence[View]) -> int:
        assert self._outputs is not None
        tree = TokenTree(self._chain)
        new: list[tuple[View, Path]] = []
        for view in views:
            for path in _unknown(view):
                known = self._tree.row(view.root + path)
                if known is None:
                    new.append((view, path))
                    tree.add(view.root + path)
                else:
                    view.places[path] = (self._outputs, known)
        if new:
            outputs = self._text.more([*self._read, *self._chain], tree.parents, tree.tokens)
            for view, path in new:
                view.places[path] = (outputs, tree.add(view.root + path) - 1)
        return len(tree)


class Asking:
    """A model at a server: only the nodes that something is wanted of, each a text of its own, in one request."""

    def __init__(self, text: AskedText, read: Sequence[int], ahead: Sequence[Sequence[Path]]) -> None:
        self._text = text
        self._ahead = ahead
        self._read = tuple(read)
        self._told: dict[tuple[View, Path], Mapping[int, float]] = {}  # what was wanted there

    def run(self, views: Sequence[View]) -> None:
        for view in views:
            for path in (view.at_x, view.beside):
                view.want_steps(path or ())
        likely = [(*view.root, *path) for view, nodes in zip(views, self._ahead, strict=True) for path in nodes]
        self._ask([(view, path) for view in views for path in dict.fromkeys(view.spelled())], likely)

    def run_more(self, views: Sequence[View]) -> int:
        new = [(view, path) for view in views for path in _unknown(view)]
        again = [
            (view, path)
            for view in views
            for path, ids in view.wanted.items()
            if path in view.places and ids != self._told[view, path]
        ]
        self._ask([*new, *again])
        return len(new)

    def _ask(self, nodes: Sequence[tuple[View, Path]], ahead: Sequence[Path] = ()) -> None:
        """Ask about these nodes; and about those ahead, which are remembered until something is wanted of them."""
        if not nodes:
            return
        texts = [(*self._read, *view.root, *path) for view, path in nodes]
        texts += [(*self._read, *path) for path in ahead]
        wanted = {i: dict(view.wanted.get(path, {})) for i, (view, path) in enumerate(nodes)}
        outputs = self._text.places(texts, wanted)
        for i, (view, path) in enumerate(nodes):
            view.places[path] = (outputs, i)
            self._told[view, path] = wanted[i]


def _unknown(view: View) -> list[Path]:
    """The nodes of its ways of which the model has said nothing yet."""
    nodes = dict.fromkeys(node for way in view.ways.values() for node in way.nodes)
    return [node for node in nodes if node not in view.places]
