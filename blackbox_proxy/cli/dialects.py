"""The command that shows what is known of servers: `dialects`."""

from __future__ import annotations

from typing import Annotated

import typer

from blackbox_proxy.cli.app import app


@app.command()
def dialects(
    *, markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False
) -> None:
    """List the kinds of servers that this library speaks to, and what works with each."""
    from blackbox_proxy.dialects import support

    typer.echo(support.markdown() if markdown else support.text())
