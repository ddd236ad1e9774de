"""A token tree: the paths of many positions and candidates, so that one forward pass scores them all."""

from __future__ import annotations

Path = tuple[int, ...]
"""Local token ids from the end of the trunk; () is that end itself."""


class TokenTree:
    """Nodes in the order in which they were added, parents before children. Row 0 of a forward pass is the trunk's
    end.
    """

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.tokens: list[int] = []
        self._rows: dict[Path, int] = {(): 0}

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

    def __len__(self) -> int:
        return len(self.tokens)
