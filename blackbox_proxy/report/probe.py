"""A probe's findings in the terminal: what the endpoint does, what follows from it, and a line to paste."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.text import Text

from blackbox_proxy.dialects.findings import Findings
from blackbox_proxy.probing.verdict import paste, verdicts
from blackbox_proxy.screen.tables import Table

_COLOURS = {"exactly": "green", "approximately": "yellow", "one token": "yellow", "not here": "dim", "not known": "dim"}
_SENT = {(): "a trailing message of the assistant", ("prefix",): "`prefix: true` in the last message"}
_BYTES = {
    "true": "true ones, of parts of characters too",
    "of the text": "only of the text as it is written, replacement characters and all",
    "null": "null",
    "absent": "no such field",
    "whole": "of whole characters; no other token was seen",
}


def findings_table(findings: Findings) -> Table:
    """One row for each question that has an answer, or a reason why it has none."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, answer in _rows(findings):
        table.add_row(name, Text(answer))
    return table


def verdict_table(findings: Findings) -> Table:
    """One row for each part of the library: whether it works there, and why."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in verdicts(findings):
        table.add_row(verdict.what, Text(verdict.how, style=_COLOURS[verdict.how]), Text(verdict.why))
    return table


def cost_line(findings: Findings) -> str:
    tokens = f"{findings.prompt_tokens} prompt + {findings.completion_tokens} output tokens"
    return f"{findings.calls} requests, {tokens} billed by the API's own count."


def findings_record(findings: Findings) -> dict[str, Any]:
    """For JSON."""
    told = [asdict(verdict) for verdict in verdicts(findings)]
    return {**asdict(findings), "verdict": told, "open": paste(findings)}


# -- the rows ---------------------------------------------------------------------------------------------------------


def _rows(found: Findings) -> Iterator[tuple[str, str]]:
    yield "says it is", _identity(found)
    for api in sorted(found.apis, key=lambda name: name != found.api):
        yield f"/{api}" if api == "completions" else "/chat/completions", found.apis[api]
    yield from _told("model list", "the model is not in it" if found.listed is False else "", found, "list of models")
    if found.tokenizer is not None:
        yield "tokenizer", found.tokenizer
    if found.window:
        yield "window", f"{found.window} tokens"
    yield "largest k", _largest(found)
    yield from _told("beyond the k", _OUTSIDE.get(found.outside or "", ""), found, "")
    yield from _told("token ids", _IDS.get(found.ids or "", ""), found, "ids")
    yield from _told("bytes", _bytes(found), found, "")
    yield from _told("sentinels", ", ".join(f"{value:g}" for value in found.sentinels), found, "")
    yield from _told("prompt of ids", _ids_in(found), found, "token-id prompt")
    yield from _told("text prefix", _same(found.text_drift), found, "text prefix")
    yield from _told("prefill", _prefill(found), found, "prefill")
    yield from _told("echo", _echo(found), found, "echo")
    yield from _told("prompt_logprobs", _either(found.prompt_logprobs, "yes", "no"), found, "")
    yield from _told("streaming", _streams(found), found, "streaming")
    yield from _told("logit_bias", _bias(found), found, "logit_bias")
    yield from _told("named tokens", _named(found), found, "named tokens")
    yield from _told("temperature", _AFTER.get(found.after or "", ""), found, "temperature")
    yield from _told("temperature 0", _greedy(found), found, "repeats")
    yield from _told("end of text", found.end or "", found, "end of text")
    limits = ", ".join(f"{name} {value}" for name, value in sorted(found.limits.items()))
    yield "rate limits", limits or "no headers about them"


_OUTSIDE = {
    "listed": "a token drawn beyond them is listed besides them (k + 1 entries)",
    "missing": "a token drawn beyond them is not among the entries (k)",
    "cut": "a token drawn beyond them takes the place of the last (k entries, one likely token lost)",
}
_IDS = {"shown": "shown beside every candidate", "on request": "on request", "no": "not shown"}
_AFTER = {
    "nothing": "numbers are the model's own, whatever the temperature",
    "temperature": "numbers follow the temperature",
}


def _told(name: str, answer: str, found: Findings, question: str) -> Iterator[tuple[str, str]]:
    """The answer, with the reason it is missing or what the server said to it; nothing where neither is known."""
    refused = found.refused.get(question, "") if question else ""
    if answer or refused:
        yield name, answer + ("" if not refused else f" ({refused})" if answer else refused)


def _either(value: bool | None, yes: str, no: str) -> str:
    return "" if value is None else yes if value else no


def _identity(found: Findings) -> str:
    owner = "nothing" if found.owner is None else f"owned_by {found.owner!r}"
    if found.claims is not None:
        return f"{owner}, which is dialect {found.claims!r}; asked as {found.dialect!r}"
    return f"{owner}; asked as {found.dialect!r}" + ("" if found.recognised else ", for want of anything better known")


def _largest(found: Findings) -> str:
    if not found.k:
        return "no log probabilities"
    return {
        "named": f"{found.k}, the limit that it names",
        "silent": f"{found.k}: it shows no more, whatever is asked for (its whole vocabulary, or a silent limit)",
        "tried": f"{found.k} or a few more: larger numbers are refused",
        "open": f"{found.k} or more: no limit was met",
    }[found.k_how or "open"]


def _bytes(found: Findings) -> str:
    said = [] if found.bytes is None else [_BYTES[found.bytes]]
    if found.parts is not None:
        said.append(f"parts of characters are written {found.parts}")
    if found.overwritten:
        said.append("candidates written alike overwrite each other")
    if found.joined:
        said.append("some rows stand for several tokens")
    if found.wrong is not None:
        said.append("they are those of the tokenizer" if found.wrong == 0 else f"{found.wrong} are not the tokenizer's")
    return "; ".join(said)


def _same(drift: float | None) -> str:
    return "" if drift is None else f"continues its own draft{_within(drift)}"


def _within(drift: float) -> str:
    return f" to within {drift:.1g} nats" if drift else ", exactly"


def _ids_in(found: Findings) -> str:
    if found.ids_in is None:
        return ""
    if not found.ids_in:
        return "not taken"
    return "taken" + (f", {_same(found.ids_drift)}" if found.ids_drift is not None else "; not compared with a draft")


def _prefill(found: Findings) -> str:
    if found.prefill is None:
        return ""
    if not found.prefill:
        return "an answer that was begun is not continued"
    fields = tuple(found.prefill["message"])
    body = ", ".join(f"{name}: {str(value).lower()}" for name, value in found.prefill["body"].items())
    how = f"`{body}`" if body else _SENT.get(fields, ", ".join(fields))
    space = _either(found.keeps_space, ", a space at its end is kept", ", a space at its end is lost")
    repeats = ", and its text repeated" if found.repeats else ""
    return f"by {how}: {_same(found.prefill_drift)}{space}{repeats}"


def _echo(found: Findings) -> str:
    if found.echo != "scored":
        return {
            "text": "the text comes back, without log probabilities",
            "ignored": "ignored",
            "refused": "refused",
        }.get(found.echo or "", "")
    drift = "" if found.echo_drift is None else f", those of the draft{_within(found.echo_drift)}"
    more = [name for name, has in (("echo_last", found.echo_last), ("streams", found.echo_streams)) if has]
    return f"with log probabilities{drift}" + (f"; also {', '.join(more)}" if more else "")


def _streams(found: Findings) -> str:
    if found.streams is None:
        return ""
    said = {"log probabilities": "with log probabilities", "text": "text only", "whole": "comes in one piece"}
    usage = ", with usage" if found.stream_options else ", without usage"
    return said[found.streams] + ("" if found.streams == "whole" else usage)


def _bias(found: Findings) -> str:
    if found.bias != "honoured":
        return found.bias or ""
    shown = _either(found.reflected, ", and shows in the numbers", ", and does not show in the numbers")
    return f"honoured, {found.bias_keys} keys at once{shown}"


def _named(found: Findings) -> str:
    return "" if found.named is None else f"by {found.named}" if found.named else "none of the known fields does it"


def _greedy(found: Findings) -> str:
    if found.same_text is None:
        return ""
    text = "the same text" if found.same_text else "NOT always the same text"
    own = "" if found.greedy is not False else "; it does not write the likeliest token that it shows"
    return f"{text} {found.repeated} times more, numbers the same{_within(found.drift or 0.0)}{own}"
