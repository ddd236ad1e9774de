"""Tables that never cut a figure, however narrow the terminal.

A column that is justified to the right has figures, any other one names. Where a table is too wide, names and heads are
wrapped; where that is not enough, every row becomes a few lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import table as drawn
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.text import Text

_NAME = 14  # cells below which no column of names is pressed: the rows become lines first
_ENDLESS = 100_000


class Table(drawn.Table):
    """rich's table, fitted to the width it is drawn in."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.columns and not self._fit(console, options):
            yield from self._lines(console, options)
        else:
            yield from super().__rich_console__(console, options)

    def _fit(self, console: Console, options: ConsoleOptions) -> bool:
        """Give each column its width; False where there is no room."""
        wide = options.update(max_width=_ENDLESS)
        least, most = [], []
        for column in self.columns:
            column.width = None
            if column.overflow == "ellipsis":
                column.overflow = "fold"
            head = Measurement.get(console, wide, column.header) if self.show_header else Measurement(0, 0)
            cells = max((Measurement.get(console, wide, cell).maximum for cell in _cells(self, column)), default=0)
            natural = max(cells, head.maximum)
            most.append(natural)
            if column.justify == "right":
                least.append(max(cells, head.minimum))
            else:
                least.append(natural if column.no_wrap else min(natural, max(_NAME, head.minimum)))
        borders = Measurement.get(console, wide, self).maximum - sum(most)
        spare = options.max_width - borders - sum(least)
        if spare < 0:
            return False
        for names in (True, False):  # names first: heads stay readable in several lines
            growing = [i for i, column in enumerate(self.columns) if (column.justify != "right") == names]
            while spare and (short := [i for i in growing if least[i] < most[i]]):
                least[min(short, key=lambda i: least[i])] += 1
                spare -= 1
        for column, width in zip(self.columns, least, strict=True):
            column.width = width
        return True

    def _lines(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = options.max_width
        if self.title is not None:
            yield _text(console, self.title, "bold")
        columns = [list(_cells(self, column)) for column in self.columns]
        heads = [_text(console, column.header if self.show_header else "", "dim") for column in self.columns]
        for place, row in enumerate(self.rows):
            first, *others = [_text(console, cells[place], row.style) for cells in columns]
            if self.columns[0].justify == "right" and heads[0]:
                first = Text.assemble(heads[0], " ", first)
            yield first
            for head, cell in zip(heads[1:], others, strict=True):
                if cell.plain.strip():
                    line = Text.assemble("  ", head, "  " if head else "", cell, overflow="fold")
                    if line.cell_len > width and head and cell.cell_len + 4 <= width:
                        yield Text.assemble("  ", head, overflow="fold")
                        line = Text.assemble("    ", cell)
                    yield line
        if self.caption is not None:
            yield _text(console, self.caption, "dim")


def _cells(table: drawn.Table, column: drawn.Column) -> list[RenderableType]:
    """What stands below the head, footers included."""
    cells = list(column.cells)
    return [*cells, column.footer] if table.show_footer else cells


def _text(console: Console, cell: Any, style: Any) -> Text:
    """A cell as one line of text."""
    text = cell.copy() if isinstance(cell, Text) else console.render_str(str(cell))
    text.plain = " ".join(text.plain.split("\n"))
    text.overflow = "fold"
    if style:
        text.stylize(style)
    return text
