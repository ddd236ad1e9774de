"""Generations in the terminal: text as it arrives, changed tokens in colour, what it cost in one line."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from blackbox_proxy.screen.visible import shown
from blackbox_proxy.types import Step, Usage

CHANGED = "bold magenta"
TAIL = "bold yellow"


def step_style(step: Step) -> str:
    """Colour of a step: changed by the proxy, changed to a token that the base had not even shown, or none."""
    if not step.changed:
        return ""
    chosen = [c for c in step.candidates if c.tail and (c.token.end if step.end else c.token.bytes == step.token)]
    return TAIL if chosen else CHANGED


def coloured(steps: Iterable[Step]) -> Text:
    """The text with the tokens that the proxy changed in colour.

    Text lags behind tokens where characters are incomplete; a piece takes the strongest colour of the tokens in it.
    """
    text, waiting = Text(), ""
    for step in steps:
        waiting = step_style(step) or waiting
        if step.text:
            text.append(shown(step.text), style=waiting or None)
            waiting = ""
    return text


def legend() -> Text:
    text = Text("changed by the proxy: ")
    text.append("from the base's own candidates", style=CHANGED)
    text.append(", ")
    text.append("beyond them", style=TAIL)
    return text


def show_stream(console: Console, steps: Iterable[Step], *, colour: bool) -> list[Step]:
    """Print steps as they come; returns them. What is no terminal gets the text itself, every byte of it."""
    seen = []
    for step in steps:
        seen.append(step)
        if console.is_terminal:
            text = coloured([step]) if colour else Text(shown(step.text))
            console.print(text, end="", soft_wrap=True, highlight=False)
        else:
            console.file.write(step.text)
            console.file.flush()
    console.print()
    return seen


def cost_line(steps: list[Step]) -> str:
    """What a text cost, in words."""
    usage = sum((step.usage for step in steps), Usage())
    changed = sum(step.changed for step in steps)
    tokens = len(steps)
    retries = f", {usage.retries} retries" if usage.retries else ""
    return (
        f"{tokens} tokens, {changed} changed; {usage.api_calls} API calls "
        f"({usage.api_calls / max(tokens, 1):.2f} per token), {usage.prompt_tokens} prompt + "
        f"{usage.completion_tokens} output tokens billed{retries}"
    )
