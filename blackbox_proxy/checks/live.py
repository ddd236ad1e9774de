"""What takes requests or models: a token of the base, its probe, the pair loaded, its fit and what texts will cost."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from blackbox_proxy.checks.finding import Finding, Level, failed
from blackbox_proxy.checks.settings import check_settings, unknown
from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.opening import Setup
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Prefix
from blackbox_proxy.version import __version__

if TYPE_CHECKING:
    from blackbox_proxy.dialects.findings import Findings

_PROMPTS = ("The mayor of the town said that", "Q: What is the capital of France?\nA:", "In the morning, the children")
_LEVELS = {"good": "ok", "note": "warns", "bad": "fails"}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How far `doctor` goes. prompts: like those to be asked; tokens: of the base that the pair is held to; texts,
    length: what the estimate is about; probe: ask an endpoint that was not probed yet, at most so many requests.
    """

    prompts: Sequence[str] = _PROMPTS
    tokens: int = 48
    texts: int = 100
    length: int = 64
    probe: int = 40


def examine(setup: Setup, how: Examination) -> Iterator[Finding]:
    """All checks in their order; what hangs on something that fails is left out."""
    yield versions()
    told = []
    for found in check_settings(setup):
        told.append(found)
        yield found
    if any(found.level == "fails" for found in told):
        return
    if not setup.settings.base.local:
        if setup.settings.equation.weights is not None:
            loaded = check_learned_for(setup)
            yield loaded
            if loaded.level == "fails":
                return
        for asked in ask_the_base(setup):
            yield asked
            if asked.level == "fails":
                return
        yield check_probe(setup, how.probe)
    yield from check_fit(setup, how)


def versions() -> Finding:
    """What is installed."""
    parts = [f"blackbox_proxy {__version__}", f"Python {platform.python_version()}"]
    parts += [f"{name} {version(name)}" for name in ("torch", "transformers", "openai")]
    return Finding("ok", "versions", ", ".join(parts))


def check_learned_for(setup: Setup) -> Finding:
    """Whether weights were learned for these very models: they are loaded, and nothing is asked of them."""
    try:
        base = setup.open_base()
        try:
            setup.weights_for(base, list(setup.open_pairs().values()))
        finally:
            run(base.aclose())
    except BlackboxError as error:
        return failed("weights", error)
    return Finding("ok", "weights", "learned for these very models")


def ask_the_base(setup: Setup) -> Iterator[Finding]:
    """Its tokenizer, where that is to be found, and one token, asked for anew."""
    cache = setup.settings.cache.model_copy(update={"use": False})
    fresh = replace(setup, settings=setup.settings.model_copy(update={"cache": cache}))
    try:
        base = fresh.open_base()
        try:
            if setup.tokenizer == "auto":
                yield _tokenizer(base)
            began = time.monotonic()
            draft = run(base.draft(Ask(Prefix(_PROMPTS[0]), 1)))
            seconds = time.monotonic() - began
        finally:
            run(base.aclose())
    except BlackboxError as error:
        yield failed("one token", error)
        return
    if not draft.positions:
        yield Finding("warns", "one token", "the base ended its text at once", "Is it the right model?")
        return
    shown = len(draft.positions[0].tokens)
    said = f"{draft.positions[0].token.text!r}, with {shown} candidates, after {seconds:.2f} s"
    yield Finding("ok", "one token", f"{said}; {draft.usage.prompt_tokens} prompt tokens were billed")


def _tokenizer(base: Base) -> Finding:
    vocabulary = base.vocabulary
    return unknown() if vocabulary is None else Finding("ok", "tokenizer", f"found, with {len(vocabulary):,} tokens")


def check_probe(setup: Setup, most: int) -> Finding:
    """What the endpoint really does: as it was found before, or is found now."""
    from blackbox_proxy.probing.verdict import verdicts

    try:
        findings, how = _probed(setup, most)
    except BlackboxError as error:
        return failed("probe", error)
    if findings is None:
        return Finding("warns", "probe", "the endpoint was never probed", "Run `blackbox-proxy probe` once.")
    told = next(verdict for verdict in verdicts(findings) if verdict.what == "generate")
    level = {"exactly": "ok", "not here": "fails"}.get(told.how, "warns")
    hint = "" if level == "ok" else "`blackbox-proxy probe` says more; docs/servers.md says which servers do."
    return Finding(cast(Level, level), "probe", f"whole texts: {told.how}; {told.why} ({how})", hint)


def _probed(setup: Setup, most: int) -> tuple[Findings | None, str]:
    from blackbox_proxy.base.opening import OPENAI_URL, given_url
    from blackbox_proxy.dialects import findings as kept
    from blackbox_proxy.dialects.guessing import dialect_of, located
    from blackbox_proxy.probing.run import probe
    from blackbox_proxy.transport.address import shown_url

    told = setup.settings.base
    spoken = dialect_of(told.dialect, given_url(told.url))
    url = located(given_url(told.url) or spoken.home or OPENAI_URL, spoken, setup.model)
    known = kept.saved(shown_url(url), setup.model, told.api)
    if known is not None:
        return known, f"found on {known.asked_at[:10]}"
    if most < 1:
        return None, ""
    found = probe(
        setup.model,
        api=told.api,
        base_url=told.url,
        api_key=setup.key(),
        dialect=told.dialect,
        tokenizer=setup.tokenizer,
        max_calls=most,
    )
    kept.save(found)
    return found, f"{found.calls} requests"


def check_fit(setup: Setup, how: Examination) -> Iterator[Finding]:
    """The pair loaded, what it makes of a few dozen tokens of the base, and what texts will take."""
    from blackbox_proxy.evaluation.fit import measure_fit

    try:
        with setup.open() as tuner:
            fit = measure_fit(
                tuner,
                list(how.prompts),
                max_tokens=how.length,
                tokens=how.tokens,
                texts=how.texts,
                prices=setup.prices,
            )
    except BlackboxError as error:
        yield failed("fit", error)
        return
    for verdict in fit.verdicts:
        yield Finding(cast(Level, _LEVELS[verdict.level]), "fit", verdict.text, verdict.hint)
    forecast = fit.forecast
    calls = f"{forecast.usage.api_calls} calls ({forecast.calls_per_token:.2f} per token)"
    tokens = f"{forecast.usage.prompt_tokens} prompt + {forecast.usage.completion_tokens} output tokens"
    expected = f"{forecast.texts} texts of {forecast.length:.0f} tokens: {calls}, {tokens}"
    if forecast.cost is not None:
        yield Finding("ok", "cost", f"{expected}, {forecast.cost:.4g} by the prices")
    elif setup.settings.base.local:
        yield Finding("ok", "cost", f"{expected}, all in this process")
    else:
        yield Finding("warns", "cost", expected, "Give prices under [budget] (--prices) to see money.")
