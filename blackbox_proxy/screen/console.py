"""What commands print with. On a terminal, text of others (models, servers, files) is shown and not obeyed.

A pipe gets the text as it is: a program reads it. JSON on a terminal is the same value with more `\\\\u` escapes.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from blackbox_proxy.screen.visible import escaped, shown


class Screen(Console):
    """rich's console, with no markup and no emoji names in strings. On a terminal, everything that is drawn passes
    `render`: text loses what is no text, and keeps the styles given here. No style has a link.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        segments = super().render(renderable, options)
        return map(_harmless, segments) if self.is_terminal else segments


def _harmless(segment: Segment) -> Segment:
    text, style, control = segment
    if control is not None:  # made by rich, to move the cursor
        return segment
    if style is not None and style.link is not None:
        style = style.update_link(None)
    elif text.isprintable():
        return segment
    return Segment(shown(text), style)


def say(text: str, *, err: bool = False) -> None:
    """Print a line as it is; on a terminal, as it may be shown."""
    stream = sys.stderr if err else sys.stdout
    _write(stream, shown(text) if stream.isatty() else text)


def say_json(value: Any) -> None:
    """Print a value as a line of JSON."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a character
        text = json.dumps(value)
    _write(sys.stdout, escaped(text) if sys.stdout.isatty() else text)


def _write(stream: IO[str], text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return shown(text) if sys.stderr.isatty() else text


class _OnScreen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


def show_logs(*telling: str) -> None:
    """Warnings that nobody handles go to a terminal the same way, and what these loggers tell at INFO."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Shown())
    for logger in map(logging.getLogger, telling):
        if not logger.handlers:
            logger.addHandler(_OnScreen())
            logger.setLevel(logging.INFO)
