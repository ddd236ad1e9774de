"""The command for a conversation: `chat`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import DecodingOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.screen.console import Screen


@app.command()
@takes(DecodingOptions)
def chat(
    *,
    parts: DecodingOptions,
    plain: Annotated[
        bool | None,
        typer.Option(
            "--plain/--messages",
            help="Show the models a transcript (User: … Assistant: …), or messages; by default messages where the base "
            "has chat.",
        ),
    ] = None,
) -> None:
    """Talk with the tuned big model. Tokens that the proxy changed are coloured.

    Commands: /alpha 0.5 weighs the pair anew, /base shows what the untuned base says, /why the candidates of the last
    token, /save FILE keeps what was said, /reset forgets it, /help tells the rest. Through a pipe, every line is
    something said or a command, and only replies are written to standard output; the first error ends it.

    Examples:

        blackbox-proxy chat --config proxy.toml

        printf 'Who won?\\n/base\\n' | blackbox-proxy chat --config proxy.toml
    """
    quiet_transformers()
    from blackbox_proxy.chat.conversation import Conversation
    from blackbox_proxy.chat.terminal import Chat, piped_lines, typed_lines

    told = parts.settings.base
    transcript = told.prompt == "raw" and (told.local or told.api == "completions") if plain is None else plain
    typing = sys.stdin.isatty() and sys.stdout.isatty()
    console, note = Screen(), Screen(stderr=True)
    with parts.open() as tuner:
        conversation = Conversation(tuner, parts.arguments(), plain=transcript)
        talk = Chat(conversation, console, note, parts.shown(tuner.base.vocabulary))
        if typing:
            seen = "a transcript" if transcript else "messages"
            note.print(f"{parts.model}, tuned; it sees {seen}. /help tells the commands.", style="dim", highlight=False)
        talk.run(typed_lines() if typing else piped_lines(), patient=typing)
