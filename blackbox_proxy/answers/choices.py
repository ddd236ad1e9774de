"""Multiple choice: how likely the tuned model finds each of a few answers (arXiv 2401.08565, section 7).

One request of one token: the candidates that are forms of an option (forms.py) are added up to it, options that the
base does not show are treated by a stated rule, and p is the equation of `combine` over all candidates. So it works
through any API that shows log probabilities, a chat that cannot be continued included. Options longer than a token are
scored whole (scoring.py), or told apart by their first token where the API scores nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from blackbox_proxy.answers import scoring
from blackbox_proxy.answers.asking import ask, rows_of
from blackbox_proxy.answers.forms import Forms, ShownForms
from blackbox_proxy.decoding.prompted import check_prompt
from blackbox_proxy.decoding.rows import Rows, Scored, Weigher, opened
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.weigh import log_spread
from blackbox_proxy.decoding.weighed import Known
from blackbox_proxy.decoding.whole_vocabulary import over_everything
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths import equation as maths
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.protocols import Ask, Base, Pair, Row
from blackbox_proxy.types import Floats, Key, Prefix, Prompt, Token, Usage

Missing = Literal["backoff", "floor", "exclude", "ask"]
Normalise = Literal["none", "tokens", "bytes"]
Source = Literal["shown", "backoff", "floor", "asked", "scored", "excluded"]
Decided = Literal["forms", "scores", "first token"]

_NONE = -math.inf


@dataclass(frozen=True, slots=True)
class Rule:
    """How options are recognised and compared.

    missing: what is done about an option of which the base shows no form, while it shows one of another: "backoff" and
    "floor" estimate it as the tail policies do (see `equation.tail`; "floor" gives each missing option an equal share
    of what is hidden, at most the least probability shown), "exclude" says it cannot win. "ask" asks the base about
    it by further requests, whatever it shows. Where it tells of no option at all, none can win: see `Choice`.
    forms: merge surface forms by the rule of forms.py; else an option is exactly its text. normalise: divide the log
    probabilities of options longer than a token by their number of tokens or bytes before they are compared.
    """

    missing: Missing = "backoff"
    forms: bool = True
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        for name, known in (("missing", get_args(Missing)), ("normalise", get_args(Normalise))):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r}", hint=f"Use one of {', '.join(known)}.")


@dataclass(frozen=True, slots=True)
class Choice:
    """What the tuned model, the base and the pair make of each option.

    `log_p` (tuned), `log_q` (base), `log_expert`, `log_antiexpert`: nats, one per option, each normalised over the
    options; -inf for what has no mass. `log_antiexpert` is 0 where there is no anti-expert; with several pairs both are
    of the first. `best`, `base_best`, `expert_best`, `antiexpert_best`: the likeliest option of each; None where no
    option has any mass.
    `covered`: the share of the base's probability that the shown forms of the options have; `tuned_covered`: the share
    of the tuned model's that all options have. Both are small where the model would rather say something else:
    `instead` is the tuned model's likeliest token, "" the end of its text.
    Where the base shows no option, and tells of none when it is asked, it is about to write something else (to think
    aloud, say), and nothing is chosen by guessing (`unseen`): `log_p` and `log_q` are -inf, `instead` is the base's.
    `missing`: the options of which the base showed no form. `how`: where log q of each option comes from. `by`: what
    decided: "forms" of one token, "scores" of whole options (then `covered` is the sum of their probabilities), or
    only the "first token" of each. `usage`: what the requests cost; choices under several equations share them.
    """

    options: tuple[str, ...]
    log_p: tuple[float, ...]
    log_q: tuple[float, ...]
    log_expert: tuple[float, ...]
    log_antiexpert: tuple[float, ...]
    best: int | None
    base_best: int | None
    expert_best: int | None
    antiexpert_best: int | None
    missing: tuple[int, ...]
    how: tuple[Source, ...]
    covered: float
    tuned_covered: float
    instead: str
    by: Decided
    usage: Usage

    @property
    def abstained(self) -> bool:
        """No option has any mass: nothing was chosen."""
        return self.best is None

    @property
    def unseen(self) -> bool:
        """The base told of no option: it is about to write something else, `instead`."""
        return set(self.how) == {"excluded"}

    @property
    def answer(self) -> str | None:
        """The text of the option chosen."""
        return None if self.best is None else self.options[self.best]

    @property
    def changed(self) -> bool:
        """Whether the base would have chosen another option."""
        return self.best != self.base_best


async def choose(
    base: Base,
    pairs: Sequence[Pair],
    prompt: Prompt,
    options: Sequence[str],
    equations: Sequence[Equation],
    *,
    rule: Rule | None = None,
) -> list[Choice]:
    """Which of `options` follows `prompt`, one Choice for each of `equations` (several alphas, say).

    One request and one forward pass for all of them, and one more request for each missing option under "ask" (fewer
    where the API can be asked about several tokens at a time). Options of several tokens: one request each. Raises
    InputError before anything is sent, BaseError, PairError.
    """
    rule = rule or Rule()
    by = check(base, pairs, prompt, options, rule)
    if by == "scores":
        return await _by_scores(base, pairs, prompt, options, equations, rule)
    asked = await asked_about(base, pairs, prompt, options, rule, by)
    return await on_thread(_choices, base, prompt, Weigher(pairs, equations, temperature=1.0), rule, asked)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the base showed of the options, what it told when it was asked about others, and what that cost."""

    shown: ShownForms
    told: Mapping[Key, float]
    by: Decided
    usage: Usage


async def asked_about(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, options: Sequence[str], rule: Rule, by: Decided
) -> Asked:
    forms = Forms(tuple(options), rule.forms, by == "first token")
    draft = await base.draft(Ask(Prefix(prompt), 1))
    shown = ShownForms(base.vocabulary, forms, draft.positions[0] if draft.positions else None)
    told: Mapping[Key, float] = {}
    usage = draft.usage
    if rule.missing == "ask" and shown.missing:
        told, spent = await ask(base, pairs, prompt, shown)
        usage += spent
    return Asked(shown, told, by, usage)


def check(base: Base, pairs: Sequence[Pair], prompt: Prompt, options: Sequence[str], rule: Rule) -> Decided:
    """How this is going to be decided. Raises InputError if it cannot be asked; sends nothing."""
    if isinstance(options, str):
        raise InputError("the options are one text", hint='Give a list: ["A", "B"].')
    if len(prompt) == 0:
        raise InputError("the prompt is empty", hint="Give the question.")
    forms = Forms(tuple(options), rule.forms)
    check_prompt(pairs, prompt, 1)
    base.check(prompt, 1)
    if not forms.single(base.vocabulary):
        if base.abilities.scores:
            return "scores"
        forms = Forms(tuple(options), rule.forms, True)
        forms.check_first_tokens(base.vocabulary)
    if rule.missing == "ask" and base.abilities.reveals == 0:
        raise InputError(
            f"{base.name} is reached through an API that tells nothing about tokens that it does not show",
            hint='Treat missing options by another rule: "backoff", "floor" or "exclude".',
        )
    return "first token" if forms.first else "forms"


# -- one token --------------------------------------------------------------------------------------------------------


def scored_forms(
    base: Base, prompt: Prompt, weigher: Weigher, rule: Rule, asked: Asked
) -> tuple[Rows, list[list[tuple[Token, float]]], tuple[Source, ...], Scored | None]:
    """What the pairs say; the forms that count for each option with their log q, and where that comes from; all of it
    together, where the base shows anything.
    """
    pairs, position = weigher.pairs, asked.shown.position
    with opened(pairs, prompt, base.vocabulary) as sessions:
        rows = rows_of(sessions, base, asked.shown)
        counted, how = _counted(rows, pairs, rule, asked.shown, asked.told)
        scored: Scored | None = None
        if position is not None:
            scored = Scored(weigher, position, rows, 0, Known.of([entry for forms in counted for entry in forms]))
            weigher.complete(sessions, [scored])
    return rows, counted, how, scored


def _choices(base: Base, prompt: Prompt, weigher: Weigher, rule: Rule, asked: Asked) -> list[Choice]:
    """One under each equation."""
    pairs, shown = weigher.pairs, asked.shown
    rows, counted, how, scored = scored_forms(base, prompt, weigher, rule, asked)
    expert, antiexpert = _pair_masses(rows[0], shown)
    covered = float(np.exp(logsumexp(np.array([v for found in shown.found for _, v in found]))))
    choices = []
    for i, equation in enumerate(weigher.equations):
        log_p = log_q = [_NONE for _ in shown.found]
        instead = ""
        if scored is not None:
            weighed = over_everything(scored.under(i), pairs, equation, 0)
            indices = [[weighed.index_of(token) for token, _ in forms] for forms in counted]
            log_q = [_sum(weighed.log_q, found) for found in indices]
            log_p = [_sum(weighed.log_p, found) for found in indices]
            instead = _said(weighed.tokens, weighed.log_p)
            if shown.position is not None and not any(counted):
                instead = _said(shown.position.tokens or (shown.position.token,), shown.position.logprobs)
        logs = (log_p, log_q, expert, antiexpert)
        choices.append(
            _choice(
                shown.forms.options,
                logs,
                logs,
                pairs[0].has_antiexpert,
                missing=shown.missing,
                how=how,
                covered=min(1.0, covered),
                instead=instead,
                by=asked.by,
                usage=asked.usage,
            )
        )
    return choices


def _counted(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    rule: Rule,
    shown: ShownForms,
    asked: Mapping[Key, float],
) -> tuple[list[list[tuple[Token, float]]], tuple[Source, ...]]:
    """The forms that count for each option with their log q, and where that comes from. No form of any, where the base
    told of none: an estimate would then be the pair's own answer, under the base's name.
    """
    counted = [list(found) for found in shown.found]
    how: list[Source] = ["excluded"] * len(counted)
    if not any(counted) and not any(token.key in asked for i in shown.missing for token in shown.all_forms(i)):
        return counted, tuple(how)
    how = ["shown"] * len(counted)
    estimates = _estimates(rows, pairs, rule, shown) if rule.missing != "exclude" else {}
    for option in shown.missing:
        known = [(token, asked[token.key]) for token in shown.all_forms(option) if token.key in asked]
        counted[option] = known or estimates.get(option, [])
        if known:
            how[option] = "asked"
        elif rule.missing == "exclude":
            how[option] = "excluded"
        else:
            how[option] = "floor" if rule.missing == "floor" else "backoff"
    return counted, tuple(how)


def _estimates(
    rows: Sequence[Row], pairs: Sequence[Pair], rule: Rule, shown: ShownForms
) -> dict[int, list[tuple[Token, float]]]:
    """Estimated log q of the forms of the missing options."""
    position, missing = shown.position, shown.missing
    forms = {option: shown.all_forms(option) for option in missing}
    if position is None or not any(forms.values()) or maths.hidden_mass(position.logprobs) == 0.0:
        return {}

    def spread(tokens: Sequence[Token]) -> Floats:
        return log_spread(pairs, [row.score(tokens) for row in rows])

    log_q = position.logprobs
    if rule.missing == "floor":
        each = float(maths.tail(log_q, np.zeros(0), np.zeros(len(missing)), "floor")[0])
        shares = {option: maths.normalise(_finite(spread(tokens))) for option, tokens in forms.items() if tokens}
        return {
            option: [(t, each + float(s)) for t, s in zip(forms[option], share, strict=True)]
            for option, share in shares.items()
        }
    everything = [token for tokens in forms.values() for token in tokens]
    log_a = spread(position.tokens)
    estimated = maths.tail(log_q, log_a, spread(everything), "backoff")
    values = iter(estimated)
    return {option: [(token, float(next(values))) for token in tokens] for option, tokens in forms.items()}


def _finite(values: Floats) -> Floats:
    """An even spread where nothing is known."""
    return values if np.isfinite(values).any() else np.zeros(len(values))


def _pair_masses(row: Row, shown: ShownForms) -> tuple[list[float], list[float]]:
    """log E and log A of each option: all its forms, shown or not."""
    expert, antiexpert = [], []
    for option in range(len(shown.found)):
        forms = shown.all_forms(option)
        scores = row.score(forms)
        expert.append(logsumexp(scores.log_expert))
        antiexpert.append(logsumexp(scores.log_antiexpert))
    return expert, antiexpert


def _sum(values: Floats, indices: Sequence[int | None]) -> float:
    return logsumexp(np.array([values[i] for i in indices if i is not None]))


def _said(tokens: Sequence[Token], logprobs: Floats) -> str:
    """The likeliest of some tokens, as text."""
    token = tokens[int(np.argmax(logprobs)) if len(logprobs) else 0]
    return "" if token.end else token.text or (token.bytes or b"").decode("utf-8", "replace")


# -- whole options ----------------------------------------------------------------------------------------------------


async def _by_scores(
    base: Base,
    pairs: Sequence[Pair],
    prompt: Prompt,
    options: Sequence[str],
    equations: Sequence[Equation],
    rule: Rule,
) -> list[Choice]:
    """Every option as it is written, as the text after the prompt."""
    scores = await asyncio.gather(*(scoring.score(base, pairs, prompt, option, equations) for option in options))
    usage = sum((each[0].usage for each in scores), Usage())
    choices: list[Choice] = []
    whole: Source = "scored"
    for i in range(len(equations)):
        column = [each[i] for each in scores]
        logs = tuple(
            [getattr(score, name) for score in column] for name in ("log_p", "log_q", "log_expert", "log_antiexpert")
        )
        lengths = [divisor(len(score.tokens), score.bytes, rule.normalise) for score in column]
        compared = tuple([log / n for log, n in zip(values, lengths, strict=True)] for values in logs)
        choices.append(
            _choice(
                tuple(options),
                logs,
                compared,
                pairs[0].has_antiexpert,
                missing=(),
                how=(whole,) * len(options),
                covered=float(np.exp(logsumexp(np.array(logs[1])))),
                instead="",
                by="scores",
                usage=usage,
            )
        )
    return choices


def divisor(tokens: int, size: int, normalise: Normalise) -> int:
    """What the log probability of an option of so many tokens and bytes is divided by before it is compared."""
    return {"none": 1, "tokens": tokens, "bytes": size}[normalise]


def _choice(
    options: tuple[str, ...],
    logs: Sequence[Sequence[float]],
    compared: Sequence[Sequence[float]],
    has_antiexpert: bool,
    *,
    missing: tuple[int, ...],
    how: tuple[Source, ...],
    covered: float,
    instead: str,
    by: Decided,
    usage: Usage,
) -> Choice:
    """`logs`: p, q, E, A of each option; `compared`: the same, after length normalisation."""
    p, q, e, a = (_normalised(values) for values in compared)
    best = [_best(values, options) for values in (p, q, e, a)]
    return Choice(
        options,
        p,
        q,
        e,
        a if has_antiexpert else (0.0,) * len(options),
        best[0],
        best[1],
        best[2],
        best[3] if has_antiexpert else None,
        missing,
        how,
        covered,
        float(np.exp(logsumexp(np.array(logs[0])))),
        instead,
        by,
        usage,
    )


def _normalised(values: Sequence[float]) -> tuple[float, ...]:
    total = logsumexp(np.array(values))
    return tuple(float(v) - total if math.isfinite(v) else _NONE for v in values)


def _best(values: Sequence[float], options: Sequence[str]) -> int | None:
    """The likeliest; of equals the one that comes first in the alphabet, whatever the order of listing."""
    possible = [i for i, value in enumerate(values) if math.isfinite(value)]
    return min(possible, key=lambda i: (-values[i], options[i]), default=None)
