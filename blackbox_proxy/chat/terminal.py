"""Lines in, text out: a conversation in the terminal, or through pipes. Text of the models goes to it through `screen`.

A line that begins with a slash is a command, with two it is text that begins with one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from blackbox_proxy.chat.conversation import Conversation
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.report import terminal
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.screen.visible import visible
from blackbox_proxy.types import Step

_SHOWN = 8  # candidates of a token


class Chat:
    """A conversation with its commands. settings: what a saved one says of how it was made."""

    def __init__(self, conversation: Conversation, console: Console, note: Console, settings: dict[str, Any]) -> None:
        self._conversation = conversation
        self._console = console
        self._note = note
        self._settings = settings
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/alpha": (
                self._alpha,
                "/alpha 0.5: the weight of the pair from now on, one each for several; alone: show it",
            ),
            "/base": (self._base, "/base: what the untuned base says to the last question"),
            "/why": (self._why, "/why: the candidates of the last token; /why 3: of the third from the end"),
            "/save": (self._save, "/save FILE: what was said, as JSON, in a new file"),
            "/reset": (self._reset, "/reset: forget what was said"),
            "/help": (
                self._help,
                "/help: this; //… is text that begins with a slash; Ctrl-C stops a reply, Ctrl-D ends",
            ),
        }

    def run(self, lines: Iterable[str], *, patient: bool) -> None:
        """Take every line. patient: an error is shown and the next line taken; else it ends the conversation."""
        for line in lines:
            try:
                self.take(line)
            except BlackboxError as error:
                if not patient:
                    raise
                self._note.print(f"Error: {error}", style="bold red", highlight=False, soft_wrap=True)
                if error.hint:
                    self._note.print(f"Hint: {error.hint}", highlight=False, soft_wrap=True)
            except KeyboardInterrupt:
                if not patient:
                    raise
                self._note.print("\nstopped", style="dim")

    def take(self, line: str) -> None:
        """One line: a command, or something said. Raises what the tuner raises."""
        text = line.strip()
        if not text:
            return
        if not text.startswith("/") or text.startswith("//"):
            self._show(self._conversation.ask(text.removeprefix("/")))
            return
        name, _, rest = text.partition(" ")
        if name not in self._commands:
            raise InputError(f"there is no command {name}", hint=f"There are {', '.join(self._commands)}.")
        self._commands[name][0](rest.strip())

    def _show(self, steps: Iterator[Step]) -> None:
        with closing(steps):  # type: ignore[type-var]
            seen = terminal.show_stream(self._console, steps, colour=True)
        self._note.print(terminal.cost_line(seen), style="dim", highlight=False, soft_wrap=True)

    # -- commands -------------------------------------------------------------------------------------------------

    def _alpha(self, rest: str) -> None:
        if rest:
            try:
                alphas = [float(word) for word in rest.replace(",", " ").split()]
            except ValueError:
                alphas = [math.nan]
            if not all(map(math.isfinite, alphas)):
                raise InputError(f"{rest!r} is no number", hint="/alpha 0.5")
            self._conversation.weigh(alphas)
        shown = ", ".join(f"{a:g}" if isinstance(a, float | int) else "a schedule" for a in self._conversation.alphas)
        self._note.print(f"alpha is {shown}", highlight=False)

    def _base(self, rest: str) -> None:
        self._show(self._conversation.ask_base())

    def _why(self, rest: str) -> None:
        try:
            step = self._conversation.step(int(rest or 1))
        except ValueError:
            raise InputError(f"{rest!r} is no number", hint="/why 3") from None
        self._note.print(candidates_table(step))

    def _save(self, rest: str) -> None:
        if not rest:
            raise InputError("there is no file to save to", hint="/save talk.json")
        record = {"settings": self._settings, **self._conversation.record()}
        try:
            with Path(rest).expanduser().open("x", encoding="utf-8") as out:
                out.write(json.dumps(record, ensure_ascii=True, indent=1) + "\n")
        except FileExistsError:
            raise InputError(f"{rest} is there already", hint="Name another file.") from None
        except (OSError, ValueError) as error:  # the latter for a name that no file can have
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{rest} cannot be written: {why}", hint="Name another.") from None
        self._note.print(f"{rest} is written", highlight=False, soft_wrap=True)

    def _reset(self, rest: str) -> None:
        self._conversation.reset()
        self._note.print("forgotten")

    def _help(self, rest: str) -> None:
        for _, said in self._commands.values():
            self._note.print(said, highlight=False, soft_wrap=True)
        self._note.print(terminal.legend())


def candidates_table(step: Step) -> Table:
    """The likeliest candidates of a step, in percent: base, expert, anti-expert, tuned."""
    table = Table(title=f"chosen: {visible(step.token)}{' (end)' if step.end else ''}", title_justify="left", box=None)
    table.add_column("candidate")
    for name in ("base", "expert", "anti-expert", "tuned"):
        table.add_column(name, justify="right")
    table.add_column("")
    for c in step.candidates[:_SHOWN]:
        figures = (c.log_q, c.log_expert, c.log_antiexpert, c.log_p)
        shares = ("" if math.isnan(value) else f"{100 * math.exp(value):.1f}" for value in figures)
        name = "(end)" if c.token.end else visible(c.token.bytes or c.token.text.encode("utf-8", "replace"))
        table.add_row(Text(name), *shares, "base's share estimated" if c.tail else "")
    return table


def typed_lines() -> Iterator[str]:
    """Lines that are typed, with a history of this conversation; Ctrl-C gives up a line, Ctrl-D ends."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def piped_lines() -> Iterator[str]:
    """Lines of standard input. Raises InputError for what is no UTF-8 text."""
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is no text: {error}", hint="It must be UTF-8 text.") from error
