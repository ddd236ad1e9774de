"""What follows from a probe's findings: which parts of this library work there, and how to open the base. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from blackbox_proxy.dialects.findings import EXACT, Findings, base_dialect, far
from blackbox_proxy.dialects.table import Dialect

How = Literal["exactly", "approximately", "one token", "not here", "not known"]

_USUAL_K = 20
_SAID = ("name", "evidence", "apis", "completions_k", "chat_k", "shown_after")
"""Fields that a line to paste need not name: `top_logprobs` says k, and nothing is decided by the others."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One part of the library, in words."""

    what: str
    how: How
    why: str


def verdicts(findings: Findings) -> tuple[Verdict, ...]:
    """In the order in which people ask."""
    dialect = findings.onto(base_dialect(findings))
    return (
        Verdict("generate", *_spelled(findings, *_generate(findings, dialect))),
        Verdict("sampling", *_spelled(findings, *_sampling(findings, dialect))),
        Verdict("choose", *_spelled(findings, *_choose(findings))),
        Verdict("score", *_spelled(findings, *_score(findings))),
        Verdict("local drafts", *_spelled(findings, *_local_drafts(findings, dialect))),
        Verdict('tail="ask"', *_ask(findings, dialect)),
        Verdict('steer="bias"', *_steer(findings, dialect)),
    )


def _spelled(findings: Findings, how: How, why: str) -> tuple[How, str]:
    """The same, where its token strings do not spell its text."""
    if findings.strings in (None, "plain") or how == "not here":
        return how, why
    if findings.strings != "refused":
        return how, f"{why}; its tokens are written as {findings.strings}, which is undone"
    if findings.ids in ("shown", "on request"):
        return how, f"{why}; refused without tokenizer=…, since its token strings do not spell its text"
    return "not here", "refused: its token strings do not spell its text, and it shows no ids"


def _generate(findings: Findings, dialect: Dialect) -> tuple[How, str]:
    if not findings.k:
        return "not here", "it shows no log probabilities" + _steered(findings)
    if findings.api == "chat" and dialect.prefill is None:
        return "one token", "exactly, but no more: chat begins a new turn instead of continuing an answer"
    few = (
        "few calls: drafts stream and are cut" if dialect.streams else "few calls: drafts of many tokens, not streamed"
    )
    if findings.greedy is False:
        few += "; more than usual, since it does not write the likeliest token that it shows"
    moved = max((value for value in _drifts(findings) if value is not None), default=0.0)
    if moved > EXACT:
        return "approximately", f"{few}; its numbers move by up to {moved:.2g} nats from one request to the next"
    if findings.api == "completions" and dialect.prefix == "ids":
        unknown = "" if findings.ids_drift is not None else " (taken, but not compared)"
        return "exactly", f"{few}; from any token as ids{unknown} with tokenizer=…, else as text at whole characters"
    return "exactly", f"{few}; as text, so at whole characters only{_lost_space(findings, dialect)}{_unknown(findings)}"


def _drifts(findings: Findings) -> Iterator[float | None]:
    """What a decoded text meets: the same asked again, and continuations from a prefix as it is sent."""
    yield findings.drift
    if findings.api == "chat":
        yield findings.prefill_drift
        return
    yield findings.ids_drift
    if findings.ids_drift is None:
        yield findings.text_drift


def _lost_space(findings: Findings, dialect: Dialect) -> str:
    lost = findings.api == "chat" and dialect.prefill is not None and not dialect.prefill.keeps_space
    return ", and never behind a space, which is cut off" if lost else ""


def _unknown(findings: Findings) -> str:
    told = findings.bytes == "true" or findings.ids != "no" or findings.parts != "replaced"
    return "" if told else ", and which token is a part of a character cannot be told"


def _steered(findings: Findings) -> str:
    return '; steer="bias" does without' if findings.bias == "honoured" else ""


def _sampling(findings: Findings, dialect: Dialect) -> tuple[How, str]:
    if not findings.k:
        return "not here", "it shows no log probabilities"
    if dialect.draws:
        return "exactly", "drafts count as drawn from what is shown, as is known of this kind of server"
    if findings.joined:
        return "exactly", "a token for each call: it does not show all tokens that it draws"
    if findings.greedy is False:
        return "exactly", "a token for each call: what it draws is not what it shows"
    return "exactly", "a token for each call: what it draws from is not known"


def _choose(findings: Findings) -> tuple[How, str]:
    if not findings.k:
        return "not here", "it shows no log probabilities"
    return "exactly", f"one request; options among the {_count(findings)} likeliest tokens are seen, others estimated"


def _count(findings: Findings) -> int:
    return min(findings.k or 0, _USUAL_K)


def _score(findings: Findings) -> tuple[How, str]:
    if not findings.k:
        return "not here", "it shows no log probabilities"
    if findings.api == "chat":
        return "not here", "chat does not score given text" + _through_completions(findings)
    if findings.echo is None:
        return "not known", findings.refused.get("echo", "not asked")
    if findings.echo != "scored":
        return "not here", {"refused": "echo is refused", "text": "an echo has no log probabilities"}.get(
            findings.echo, "echo is ignored"
        )
    drift = findings.echo_drift
    if far(drift):
        return "approximately", f"the echo's numbers differ from the draft's by {drift:.2g} nats"
    return "exactly", "an echo of the prompt has log probabilities"


def _through_completions(findings: Findings) -> str:
    return '; try api="completions"' if findings.apis.get("completions") == "log probabilities" else ""


def _local_drafts(findings: Findings, dialect: Dialect) -> tuple[How, str]:
    how, why = _score(findings)
    if how not in ("exactly", "approximately"):
        return how, why
    return how, "given text is scored, " + ("also in streams" if dialect.echo_streams else "but not in streams")


def _ask(findings: Findings, dialect: Dialect) -> tuple[How, str]:
    if findings.k and findings.named:
        return "exactly", f"{findings.named} shows the tokens that it names (needs tokenizer=…)"
    if findings.api == "completions" and findings.echo == "scored":
        return "exactly", "by echo, one request for each token"
    return "not here", 'tokens beyond the k cannot be asked for: use tail="backoff"'


def _steer(findings: Findings, dialect: Dialect) -> tuple[How, str]:
    if findings.bias == "honoured":
        return "approximately", f"logit_bias of up to {dialect.bias_keys} tokens at a time (needs tokenizer=…)"
    if findings.bias is None:
        return "not known", findings.refused.get("logit_bias", "not asked")
    return "not here", f"logit_bias is {findings.bias}"


# -- a line to paste --------------------------------------------------------------------------------------------------


def paste(findings: Findings) -> str:
    """Python that opens the base with all that was found, also where no findings are kept."""
    named = base_dialect(findings)
    spoken = findings.onto(named)
    changes = {
        name: getattr(spoken, name)
        for name in Dialect.__dataclass_fields__
        if name not in _SAID and getattr(spoken, name) != getattr(named, name)
    }
    for name in ("completions_k", "chat_k"):
        limit = getattr(named, name)
        if limit is not None and (getattr(spoken, name) or limit + 1) > limit:
            changes[name] = getattr(spoken, name)
    if set(spoken.apis) - set(named.apis):
        changes["apis"] = spoken.apis
    imports = ["from blackbox_proxy import open_base"]
    dialect = f'"{named.name}"'
    if changes:
        known = "DIALECTS, Prefill" if changes.get("prefill") is not None else "DIALECTS"
        imports = [
            "from dataclasses import replace",
            "",
            *imports,
            f"from blackbox_proxy.dialects.table import {known}",
        ]
        told = "".join(f"        {name}={_written(value)},\n" for name, value in changes.items())
        dialect = f'replace(\n        DIALECTS["{named.name}"],\n{told}    )'
    given = [f'"{findings.model}"', f'api="{findings.api}"', f'base_url="{findings.url}"', f"dialect={dialect}"]
    given += [f'tokenizer="{findings.tokenizer}"'] if findings.tokenizer else []
    given += [f"top_logprobs={_count(findings)}"] if findings.k else []
    listed = "".join(f"    {argument},\n" for argument in given)
    return "\n".join([*imports, "", f"base = open_base(\n{listed})"])


def _written(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
