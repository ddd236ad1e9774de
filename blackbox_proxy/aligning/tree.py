"""A token tree: the paths of many positions and candidates, so that one forward pass scores them all."""

from __future__ import annotations

Path = tuple[int, ...]
"""Local token ids from the end of the trunk; () is that end itself."""


class TokenTree:
    """Nodes in the order in which they were added, parents before children. Row 0 of a forward pass is the trunk's
    end; rows below 0 are places before it, where `chain` is the last part of what the trunk has read.
    """

    def __init__(self, chain: Path = ()) -> None:
        self.parents: list[int] = []
        self.tokens: list[int] = []
        self._rows: dict[Path, int] = {chain[:end]: end - len(chain) for end in range(len(chain) + 1)}

    def add(self, path: Path) -> int:
        """The row of a path in the forward pass; its missing nodes are added."""
        found = self._rows.get(path)
        if found is not None:
            return found
        parent = self.add(path[:-1])
        self.parents.append(parent - 1)
        self.tokens.append(path[-1])
        self._rows[path] = len(self.tokens)
        return len(self.tokens)

    def row(self, path: Path) -> int | None:
        """Where a path stands, if it was added."""
        return self._rows.get(path)

    def __len__(self) -> int:
        return len(self.tokens)
