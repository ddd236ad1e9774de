"""The command that shows what is known of servers: `dialects`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD

from blackbox_proxy.cli.app import app
from blackbox_proxy.screen.console import Screen, say
from blackbox_proxy.screen.tables import Table


@app.command()
def dialects(
    *, markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False
) -> None:
    """List the kinds of servers that this library speaks to, and what works with each."""
    from blackbox_proxy.dialects import support

    screen = Screen()
    if markdown or not screen.is_terminal:
        say(support.markdown() if markdown else support.text())
        return
    table = Table(*support.HEADER, box=SIMPLE_HEAD)
    for row in support.rows():
        table.add_row(*row)
    screen.print(table, highlight=False)
