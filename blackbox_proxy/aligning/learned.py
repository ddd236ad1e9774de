"""What is known of the base at a place of a text: its vocabulary, or what its candidates have shown on the way there.

What is learned at a place hangs on the text before it alone, so it is the same however the place was come to: all
positions of a draft can be asked about at once, and those that the text does not come to leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

from blackbox_proxy.aligning.alignment import Alignment, Segmentations
from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.text.vocabulary import LearnedVocabulary, Vocabulary
from blackbox_proxy.types import Position, Token

_KEPT = 64  # places of which the vocabulary is kept; it is learned anew at others
Known = tuple[Crossing, Alignment]


class Bases:
    """known: the crossing and the alignment with the base's vocabulary; None where that is unknown. The crossing may be
    left out where only alignments are asked for.
    """

    def __init__(
        self,
        local: Vocabulary,
        known: tuple[Crossing | None, Alignment] | None,
        segmentations: Segmentations = "canonical",
    ) -> None:
        self._local = local
        self._known = known
        self._segmentations: Segmentations = segmentations
        self._shown: dict[int, tuple[bytes, ...]] = {}  # way to a place -> the candidates there
        self._before: dict[int, tuple[LearnedVocabulary, Known]] = {}  # way -> what is known before they are shown

    def alignments(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Alignment]:
        """For each position of a draft after these tokens."""
        if self._known is not None:
            return [self._known[1]] * len(positions)
        return [alignment for _, alignment in self.at(issued, positions)]

    def at(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Known]:
        """The same, and the relations."""
        if self._known is not None:
            crossing, alignment = self._known
            assert crossing is not None
            return [(crossing, alignment)] * len(positions)
        way, learned = self._way(issued)
        found = []
        for position in positions:
            if len(position.tokens):
                self._shown[way] = tuple(_bytes(position.tokens))
            learned = self._with(learned, self._shown.get(way, ()))
            found.append(learned[1])
            learned = self._with(learned, _bytes([position.token]))
            way = hash((way, position.token.key))
            if len(self._before) >= _KEPT:
                del self._before[next(iter(self._before))]
            self._before[way] = learned
        return found

    def _way(self, issued: Sequence[Token]) -> tuple[int, tuple[LearnedVocabulary, Known]]:
        ways = [0]
        for token in issued:
            ways.append(hash((ways[-1], token.key)))
        found = self._before.get(ways[-1])
        if found is None:
            shown = [text for way in ways[:-1] for text in self._shown.get(way, ())]
            found = self._made(LearnedVocabulary([*shown, *_bytes(issued)]))
        return ways[-1], found

    def _with(self, known: tuple[LearnedVocabulary, Known], more: Sequence[bytes]) -> tuple[LearnedVocabulary, Known]:
        learned = known[0].with_more(more)
        return known if learned is known[0] else self._made(learned)

    def _made(self, learned: LearnedVocabulary) -> tuple[LearnedVocabulary, Known]:
        alignment = Alignment(self._local, learned, self._segmentations)
        return learned, (Crossing(alignment), alignment)


def _bytes(tokens: Sequence[Token | None]) -> list[bytes]:
    return [token.bytes for token in tokens if token is not None and token.bytes]
