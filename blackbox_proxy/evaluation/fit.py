"""How well a pair fits a base, from a few hundred tokens that the base writes itself: `measure_fit`.

One request a prompt. Every position of the base's own draft is weighed as `decode` would weigh it there, so that what
the tuned model would choose follows without asking again. What this cannot tell is how the tuned text goes on after its
first change: the rates are those along the base's text, and said to be.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blackbox_proxy import tuner as tuners
from blackbox_proxy.decoding.rows import Weigher, opened
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.statistics import wilson_interval
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Floats, Position, Prefix, Prompt, Usage

_WELL_COVERED = 0.9
_AT_ONCE = 64  # positions that the pair scores in one pass
_LOOKED_AT = 64  # candidates of a position that are looked at one by one, where a whole vocabulary is shown


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the figures mean, in a sentence, and what to do about it. level: "good", "note" or "bad"."""

    level: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What texts like these take when tuned: expected for one of `length` tokens, by drafts that are closed where they
    err; and the same for `texts` of them.
    """

    texts: int
    length: float
    prompt_tokens: float
    calls_per_token: float
    usage: Usage
    cost: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """The figures, all of them shares (0 to 1) of what was seen along the base's own texts unless they say otherwise.
    alpha: None where weights are learned.

    texts, tokens: that were looked at. same_spelling: base and pair have one vocabulary, so nothing must be aligned.
    vocabulary_overlap: tokens of the base that are tokens of the pair, too; None where the base's vocabulary is not
    known. candidates_overlap: the same of the candidates shown. merging: candidates that begin with the same local
    token as another one there; merging_positions: positions with such candidates. covered_mass: the base's probability
    that its candidates show, on average; low_covered: positions where that is below 0.9; top_k: candidates shown, at
    most. disagreement: positions where the tuned model's likeliest token is not the base's, with its interval;
    expert_agreement: where the expert's is the base's. neutral, approximate: candidates of which the pair knows
    nothing, or only a part. divergence: of p from q over the candidates, nats per token. usage: what this took.
    """

    alpha: float | None
    texts: int
    tokens: int
    same_spelling: bool
    vocabulary_overlap: float | None
    candidates_overlap: float
    merging: float
    merging_positions: float
    top_k: int
    covered_mass: float
    low_covered: float
    disagreement: float
    disagreement_interval: tuple[float, float]
    expert_agreement: float
    neutral: float
    approximate: float
    divergence: float
    forecast: Forecast
    usage: Usage
    verdicts: tuple[Verdict, ...] = field(default=())

    @property
    def weight(self) -> str:
        """What the pair was weighed by, in words."""
        return "learned weights" if self.alpha is None else f"alpha {self.alpha:g}"

    @property
    def fits(self) -> bool:
        """Whether nothing bad was found."""
        return all(verdict.level != "bad" for verdict in self.verdicts)


async def ameasure_fit(
    tuner: ProxyTuner,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 64,
    tokens: int = 300,
    texts: int | None = None,
    prices: Prices | None = None,
    concurrency: int = 4,
    seed: int = 0,
) -> Fit:
    """Let the base continue prompts until about `tokens` tokens are seen, and look at what the pair makes of them.

    Prompts are taken in an order drawn from `seed`, so that those looked at stand for all. max_tokens: of each text,
    and of those that the forecast is about; texts: how many these will be, as many as there are prompts by default.
    The tuner's equation and pair are used; where it has several pairs, the first. Raises InputError before
    anything is spent, BaseError and PairError.
    """
    if not prompts:
        raise InputError("there are no prompts", hint="Give a few that are like those to be asked.")
    for name, value in (("max_tokens", max_tokens), ("tokens", tokens), ("concurrency", concurrency)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}", hint="Leave it out.")
    if texts is not None and texts < 1:
        raise InputError(f"the forecast must be about at least 1 text, not {texts}", hint="Leave it out.")
    pair, equation = tuner.pairs[0], tuner.equation.of_first()
    if equation.tail == "ask":
        equation = replace(equation, tail="backoff")  # it asks for nothing but the drafts
    weigher = Weigher([pair], [equation])
    for prompt in prompts:
        pair.check(prompt, max_tokens)
        tuner.base.check(prompt, max_tokens)
    drawn = random.Random(seed).sample(list(prompts), len(prompts))
    found: list[_Written] = []
    seen = 0
    while seen < tokens and len(found) < len(drawn):
        some = drawn[len(found) : len(found) + min(concurrency, math.ceil((tokens - seen) / max_tokens))]
        found += await asyncio.gather(*(_written(tuner.base, prompt, max_tokens, weigher) for prompt in some))
        seen = sum(len(text.positions) for text in found)
    local = getattr(pair, "vocabulary", None)
    alpha = None if equation.weights is not None else equation.at(0)[0]
    return await on_thread(
        _fit, found, list(prompts), alpha, pair.has_antiexpert, tuner.base.vocabulary, local, texts, prices
    )


def measure_fit(tuner: ProxyTuner, prompts: Sequence[Prompt], **options: Any) -> Fit:
    """`ameasure_fit` for callers without a loop."""
    return tuners.run(ameasure_fit(tuner, prompts, **options))


@dataclass(frozen=True, slots=True)
class _Written:
    """What the base wrote after one prompt, weighed, and what that cost."""

    positions: tuple[Weighed, ...]
    usage: Usage


async def _written(base: Base, prompt: Prompt, max_tokens: int, weigher: Weigher) -> _Written:
    """The base's own greedy text in as few requests as it takes (one, where an answer holds all of it)."""
    prefix, usage = Prefix(prompt), Usage()
    positions: list[Position] = []
    while len(positions) < max_tokens and (not positions or base.can_continue(prefix)):
        draft = await base.draft(Ask(prefix, max_tokens - len(positions)))
        usage += draft.usage
        positions += draft.positions
        prefix = Prefix(prompt, tuple(position.token for position in positions))
        if not draft.positions or draft.ended or draft.positions[-1].token.end:
            break
    return _Written(await on_thread(_weighed, base, prompt, positions, weigher), usage)


def _weighed(base: Base, prompt: Prompt, positions: Sequence[Position], weigher: Weigher) -> tuple[Weighed, ...]:
    """Every position that the pair can score, as `decode` weighs it."""
    found: list[Weighed] = []
    with opened(weigher.pairs, prompt, base.vocabulary) as sessions:
        while len(found) < len(positions):
            some = positions[len(found) : len(found) + _AT_ONCE]
            scored = weigher.score(sessions, [position.token for position in positions[: len(found)]], some)
            found += [each.under(0) for each in scored]
            if len(scored) < len(some):
                break
    return tuple(found)


# -- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """What one step says; counts are of shown candidates that are text."""

    shown: int
    known: int
    merging: int
    neutral: int
    approximate: int
    covered_mass: float
    changed: bool
    agreed: bool
    divergence: float


def _fit(
    found: Sequence[_Written],
    prompts: Sequence[Prompt],
    alpha: float | None,
    has_antiexpert: bool,
    base: Vocabulary | None,
    local: Vocabulary | None,
    texts: int | None,
    prices: Prices | None,
) -> Fit:
    same = base is not None and local is not None and base.spells_like(local)
    looks = [_look(weighed, None if same else local) for text in found for weighed in text.positions]
    if not looks:
        raise InputError("the base ended every text at once", hint="Give prompts that it goes on from.")
    tokens, shown = len(looks), max(sum(look.shown for look in looks), 1)
    changed = sum(look.changed for look in looks)
    usage = sum((text.usage for text in found), Usage())
    fit = Fit(
        alpha=alpha,
        texts=len(found),
        tokens=tokens,
        same_spelling=same,
        vocabulary_overlap=None if base is None or local is None else _overlap(base, local),
        candidates_overlap=sum(look.known for look in looks) / shown,
        merging=sum(look.merging for look in looks) / shown,
        merging_positions=sum(look.merging > 0 for look in looks) / tokens,
        top_k=max(weighed.shown for text in found for weighed in text.positions),
        covered_mass=float(np.mean([look.covered_mass for look in looks])),
        low_covered=sum(look.covered_mass < _WELL_COVERED for look in looks) / tokens,
        disagreement=changed / tokens,
        disagreement_interval=wilson_interval(changed, tokens),
        expert_agreement=sum(look.agreed for look in looks) / tokens,
        neutral=sum(look.neutral for look in looks) / shown,
        approximate=sum(look.approximate for look in looks) / shown,
        divergence=float(np.mean([look.divergence for look in looks])),
        forecast=_forecast(found, prompts, base, changed / tokens, texts, prices),
        usage=usage,
    )
    return replace(fit, verdicts=tuple(_verdicts(fit, has_antiexpert)))


def _look(weighed: Weighed, local: Vocabulary | None) -> _Look:
    """local: the pair's vocabulary, None where it is the base's own."""
    scores = weighed.scores[0]
    expert = np.where(np.isfinite(scores.log_expert), scores.log_expert, -np.inf)
    places = [i for i in range(weighed.shown) if not weighed.tokens[i].end]
    likeliest = sorted(places, key=lambda i: -weighed.log_q[i])[:_LOOKED_AT]
    spelled = [text for text in (weighed.tokens[i].bytes for i in likeliest) if text]
    merging = 0
    if local is not None and spelled:
        count = Counter(local.first(spelled))
        merging = sum(number for number in count.values() if number > 1)
    return _Look(
        shown=len(likeliest),
        known=len(spelled) if local is None else sum(local.id_of(text) is not None for text in spelled),
        merging=merging,
        neutral=sum(scores.how[i] == "neutral" for i in likeliest),
        approximate=sum(scores.how[i] == "prefix" for i in likeliest),
        covered_mass=weighed.covered_mass,
        changed=weighed.changed,
        agreed=int(np.argmax(expert)) == weighed.base_top,
        divergence=_divergence(weighed.log_p, weighed.log_q),
    )


def _divergence(log_p: Floats, log_q: Floats) -> float:
    """KL(p || q) over the candidates, each normalised over them."""
    real = np.isfinite(log_p) & np.isfinite(log_q)
    p, q = log_p[real], log_q[real]
    p, q = p - np.logaddexp.reduce(p), q - np.logaddexp.reduce(q)
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def _overlap(base: Vocabulary, local: Vocabulary) -> float:
    spelled = [spelling for spelling in base.spelling if spelling]
    return sum(local.id_of(spelling) is not None for spelling in spelled) / max(len(spelled), 1)


def _forecast(
    found: Sequence[_Written],
    prompts: Sequence[Prompt],
    base: Vocabulary | None,
    rate: float,
    texts: int | None,
    prices: Prices | None,
) -> Forecast:
    """One request a text and one after each disagreement, which come evenly: half of the text precedes them."""
    length = sum(len(text.positions) for text in found) / len(found)
    known = [text.usage.prompt_tokens / text.usage.api_calls for text in found if text.usage.api_calls]
    prompt = sum(known) / len(known) if known else sum(_prompt_length(p, base) for p in prompts) / len(prompts)
    count = len(prompts) if texts is None else texts
    again = rate * max(length - 1, 0.0)
    calls = 1.0 + again
    usage = Usage(round(count * calls), round(count * (calls * prompt + again * length / 2)), round(count * length))
    cost = None if prices is None else prices.cost(usage)
    return Forecast(count, length, prompt, calls / length, usage, cost)


def _prompt_length(prompt: Prompt, base: Vocabulary | None) -> float:
    if base is None:
        return guessed_tokens(prompt)
    text = prompt if isinstance(prompt, str) else "".join(str(m["content"]) for m in prompt if not isinstance(m, int))
    return len(base.encode([text.encode()])[0])


# -- in words ---------------------------------------------------------------------------------------------------------


def _verdicts(fit: Fit, has_antiexpert: bool) -> list[Verdict]:
    found = []
    if fit.same_spelling:
        found.append(Verdict("good", "Base and pair have the same vocabulary: every offset is exact."))
    elif fit.neutral > 0.05:
        found.append(
            Verdict(
                "bad",
                f"The pair knows nothing of {fit.neutral:.0%} of the candidates, which keep the base's own weight.",
                "Give the base's tokenizer (--tokenizer), so that their bytes are known.",
            )
        )
    elif fit.merging_positions > 0.3:
        found.append(
            Verdict(
                "note",
                f"At {fit.merging_positions:.0%} of the positions several candidates begin with the same token of the "
                "pair; they are told apart by reading further, which takes larger local passes.",
                "A pair with the base's own vocabulary would be faster.",
            )
        )
    else:
        found.append(Verdict("good", "The vocabularies differ, and the pair can tell the candidates apart."))
    if fit.covered_mass < _WELL_COVERED:
        found.append(
            Verdict(
                "bad" if fit.covered_mass < 0.5 else "note",
                f"The base's {fit.top_k} candidates show {fit.covered_mass:.0%} of its probability on average; the "
                "rest is estimated.",
                "Raise --top-logprobs if the API allows it; or --tail ask where it can be asked about tokens.",
            )
        )
    found.append(_movement(fit, has_antiexpert))
    if fit.expert_agreement < 0.2:
        found.append(
            Verdict(
                "bad",
                f"The expert would have written the base's token at only {fit.expert_agreement:.0%} of the positions: "
                "the two are very different models, or do not see the same prompt.",
                "Check --base-prompt, --expert-prompt and --antiexpert-prompt; or take an expert closer to the base.",
            )
        )
    if fit.tokens < 100:
        found.append(
            Verdict("note", f"Only {fit.tokens} tokens were looked at: the shares are rough.", "Give more prompts.")
        )
    return found


def _movement(fit: Fit, has_antiexpert: bool) -> Verdict:
    """How much the pair would change, and what that costs."""
    if not has_antiexpert:
        note = "There is no anti-expert: the base is multiplied by the whole expert, not by what tuning changed."
        return Verdict("note", note, "Give the small model from before its tuning as --antiexpert.")
    rate, used = fit.disagreement, fit.weight
    if fit.alpha == 0.0:
        return Verdict("note", "At alpha 0 the pair changes nothing.", "Give the alpha to be used.")
    if rate < 0.01:
        return Verdict(
            "bad",
            f"The pair hardly moves the base: it would change {rate:.1%} of its tokens ({used}).",
            "Are expert and anti-expert different models, and tuned on texts like these? Try a larger --alpha.",
        )
    if rate > 0.5:
        return Verdict(
            "bad",
            f"The pair would change {rate:.0%} of the base's tokens ({used}): little of the base is left, and "
            f"a text takes {fit.forecast.calls_per_token:.2f} calls per token.",
            "Try a smaller --alpha, and compare with the expert alone (`blackbox-proxy eval`).",
        )
    return Verdict(
        "good",
        f"The pair would change {rate:.0%} of the base's tokens ({used}); published work sees 13 to 25 %.",
    )
