"""Choices and scores in the terminal and as plain data: small tables, and what they cost in a line."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich import box
from rich.text import Text

from blackbox_proxy.answers.choices import Choice
from blackbox_proxy.answers.scoring import Score
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.types import Usage

_HOW = {
    "shown": "shown by the base",
    "backoff": "not shown: estimated",
    "floor": "not shown: estimated",
    "asked": "not shown: asked for",
    "scored": "scored whole",
    "excluded": "not shown: excluded",
}


def choice_table(choice: Choice) -> Table:
    """One row for each option: its share under tuned model, base, expert and anti-expert; the likeliest in bold."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("option")
    columns = [
        ("tuned", choice.log_p, choice.best),
        ("base", choice.log_q, choice.base_best),
        ("expert", choice.log_expert, choice.expert_best),
    ]
    if choice.antiexpert_best is not None:
        columns.append(("anti-expert", choice.log_antiexpert, choice.antiexpert_best))
    for name, _, _ in columns:
        table.add_column(name, justify="right")
    table.add_column("base's probability", style="dim")
    for i, option in enumerate(choice.options):
        shares = [Text(_percent(logs[i]), style="bold" if best == i else "") for _, logs, best in columns]
        table.add_row(Text(option, style="bold" if choice.best == i else ""), *shares, _HOW[choice.how[i]])
    return table


def choice_line(choice: Choice) -> str:
    """What a table of shares does not say: abstention, what decided, how much of the probability the options have."""
    said = []
    if choice.unseen:
        said.append(f"No answer: the base shows none of the options. It writes {_quoted(choice.instead)} instead.")
    elif choice.abstained:
        said.append("No answer: no option has any probability.")
    if choice.by == "first token":
        said.append("Only the first token of each option was compared: this API does not score given text.")
    if choice.by == "forms" and not choice.unseen:
        said.append(
            f"The base shows {_share(choice.covered)} of its probability on the options, the tuned model has "
            f"{_share(choice.tuned_covered)} on them; its likeliest token is {_quoted(choice.instead)}."
        )
    return " ".join([*said, cost(choice.usage)])


def choice_record(choice: Choice) -> dict[str, Any]:
    """A choice for JSON; log values in nats, null where there is no mass."""
    logs = ("log_p", "log_q", "log_expert", "log_antiexpert")
    return {
        "answer": choice.answer,
        "abstained": choice.abstained,
        **asdict(choice),
        **{name: [_number(value) for value in getattr(choice, name)] for name in logs},
    }


def score_table(score: Score, *, has_antiexpert: bool) -> Table:
    """One row for each model: bits per byte, perplexity per token of the base, log probability."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for name in ("bits per byte", "perplexity per token", "log probability"):
        table.add_column(name, justify="right")
    rows = [
        ("tuned", score.bits_per_byte, score.perplexity, score.log_p),
        ("base", score.base_bits_per_byte, score.base_perplexity, score.log_q),
        ("expert", score.expert_bits_per_byte, score.expert_perplexity, score.log_expert),
    ]
    if has_antiexpert:
        rows.append(("anti-expert", score.antiexpert_bits_per_byte, score.antiexpert_perplexity, score.log_antiexpert))
    for name, bits, perplexity, log in rows:
        table.add_row(
            name, f"{bits:.4f}", f"{perplexity:.3f}", f"{log:.2f} nats", style="bold" if name == "tuned" else ""
        )
    return table


def score_line(score: Score) -> str:
    unscored = sum(token.how == "neutral" for token in score.tokens)
    note = f" The pair knows nothing of {unscored} of them." if unscored else ""
    return f"{score.bytes} bytes in {len(score.tokens)} tokens of the base.{note} {cost(score.usage)}"


def score_record(score: Score, *, tokens: bool = False) -> dict[str, Any]:
    """A score for JSON, with every token if that is wished for; null stands for an infinity."""
    names = (
        *("log_p", "log_q", "log_expert", "log_antiexpert"),
        *("bits_per_byte", "base_bits_per_byte", "expert_bits_per_byte", "antiexpert_bits_per_byte"),
        *("perplexity", "base_perplexity", "expert_perplexity", "antiexpert_perplexity"),
    )
    record: dict[str, Any] = {name: _number(getattr(score, name)) for name in names}
    record |= {"bytes": score.bytes, "token_count": len(score.tokens), "usage": asdict(score.usage)}
    if tokens:
        record["tokens"] = [
            {
                "text": token.text,
                "bytes": list(token.token),
                **{name: _number(getattr(token, name)) for name in names[:4]},
                "covered_mass": token.covered_mass,
                "how": token.how,
            }
            for token in score.tokens
        ]
    return record


def cost(usage: Usage) -> str:
    calls = f"{usage.api_calls} API call{'' if usage.api_calls == 1 else 's'}"
    cached = f", {usage.cached_positions} positions from the cache" if usage.cached_positions else ""
    return f"{calls}, {usage.prompt_tokens} prompt + {usage.completion_tokens} output tokens billed{cached}."


def _percent(log: float) -> str:
    return f"{100.0 * math.exp(log):.1f} %" if math.isfinite(log) else "–"


def _share(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def _quoted(text: str) -> str:
    return repr(text) if text else "the end of its text"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
