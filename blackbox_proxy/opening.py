"""From settings to what they describe: the base, the pairs and the tuner. Every command opens these here.

`Setup` keeps the settings as they are in effect, and the one thing that is none of them: a key given by hand. Heavy
parts are imported when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from blackbox_proxy.config.settings import Settings, load
from blackbox_proxy.config.tables import PairTable
from blackbox_proxy.errors import InputError
from blackbox_proxy.prices import Prices

if TYPE_CHECKING:
    from blackbox_proxy.base.budget import Budget, Pays
    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.decoding.pace import Drafting
    from blackbox_proxy.maths.weights import Weights
    from blackbox_proxy.protocols import Base, Pair
    from blackbox_proxy.text.vocabulary import Vocabulary
    from blackbox_proxy.transport.limits import Admits
    from blackbox_proxy.tuner import ProxyTuner


KEY_VARIABLE: str = PairTable.model_fields["api_key_env"].default


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings, and what they open. api_key: of the base's API, where it was given and not only its variable's name.

    What is misspelled, missing or unset is an InputError before a model is loaded or a request sent.
    """

    settings: Settings = field(default_factory=load)
    api_key: str | None = field(default=None, repr=False)

    # -- the base -------------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The base's name."""
        model = self.settings.base.model
        if model is None:
            raise InputError("no base is named", hint="Give --base, or model under [base] in a file for --config.")
        return model

    @property
    def tokenizer(self) -> str | None:
        """The base's, as `open_base` takes it."""
        told = self.settings.base.tokenizer
        return None if told == "none" else told

    def open_base(self, *, asking: bool = True, limiter: Admits | None = None, pays: Pays | None = None) -> Base:
        """The base: in this process or behind an API; within a budget and with a cache if that is wished for. What
        comes from the cache costs nothing. asking: whether its server may be asked for its tokenizer. limiter, pays:
        limits and budget that other processes share, in the place of those of the settings.
        """
        from blackbox_proxy import BudgetedBase, CachedBase, Limiter, open_base

        told, limits, cache = self.settings.base, self.settings.limits, self.settings.cache
        opened: Base
        if told.local:
            opened = self.run_here(self.model, told.top_logprobs)
        else:
            opened = open_base(
                self.model,
                api=told.api,
                base_url=told.url,
                api_key=self.key(),
                dialect=told.dialect,
                tokenizer=self.tokenizer if asking or self.tokenizer != "auto" else None,
                top_logprobs=told.top_logprobs,
                rendering=told.prompt,
                max_retry_seconds=limits.max_retry_seconds,
                limiter=limiter or Limiter(limits.requests_per_minute, limits.tokens_per_minute),
            )
        budget = pays or self.budget()
        opened = opened if budget is None else BudgetedBase(opened, budget)
        cached = cache.use if told.local else cache.use is not False
        return CachedBase(opened, cache.file, seeds=cache.seeds) if cached else opened

    def run_here(self, model: str, top_logprobs: int | None = None) -> TransformersBase:
        """A model in this process that is asked as the base is."""
        from blackbox_proxy import TransformersBase

        here = self.settings.compute
        return TransformersBase(
            model,
            top_logprobs=top_logprobs,
            device=here.device,
            dtype=here.dtype,
            rendering=self.settings.base.prompt,
        )

    def key(self) -> str | None:
        """The API's key; None leaves it to the dialect's own variable."""
        return self.api_key or _key_in(self.settings.base.api_key_env)

    @property
    def prices(self) -> Prices | None:
        """What tokens cost, where that was said."""
        told = self.settings.budget.prices
        return None if told is None else Prices(*told)

    def budget(self) -> Budget | None:
        """None where nothing is limited. Raises InputError for a cost without prices."""
        from blackbox_proxy import Budget

        told = self.settings.budget
        if told.max_calls is None and told.max_tokens_billed is None and told.max_cost is None:
            return None
        return Budget(told.max_calls, told.max_tokens_billed, told.max_cost, self.prices)

    # -- the pairs ------------------------------------------------------------------------------------------------

    def open(self, *, limiter: Admits | None = None, pays: Pays | None = None) -> ProxyTuner:
        """The tuner with all pairs; the key is looked for before a model is loaded. As `open_base` otherwise."""
        from blackbox_proxy import ProxyTuner

        if not self.settings.pairs:
            raise InputError("there is no pair", hint="Give --expert, or a table [pairs.NAME] in a file for --config.")
        equation = self.settings.equation
        if equation.weights is not None:
            self._weights()  # a file that is none is told before models are loaded
        base = self.open_base(limiter=limiter, pays=pays)
        pairs = list(self.open_pairs().values())
        return ProxyTuner(
            base,
            pairs,
            [pair.alpha for pair in self.settings.pairs.values()],
            tail=equation.tail,
            tail_size=equation.tail_size,
            draft=self.drafting(),
            steer=equation.steer,
            weights=self.weights_for(base, pairs),
        )

    def weights_for(self, base: Base, pairs: Sequence[Pair]) -> Weights | None:
        """The learned weights, where there are any. Raises InputError where they were learned for other models."""
        from blackbox_proxy.learned import read_weights

        equation = self.settings.equation
        if equation.weights is None:
            return None
        return read_weights(equation.weights, base, pairs, tail=equation.tail, tail_size=equation.tail_size)

    def open_pairs(self) -> dict[str, Pair]:
        """All pairs by their names."""
        return {name: self.open_pair(name) for name in self.settings.pairs}

    def open_pair(self, name: str) -> Pair:
        """A pair: in this process, or at the servers that have it."""
        from blackbox_proxy import ServedPair, TransformersPair

        told, here = self.settings.pairs[name], self.settings.compute
        if told.expert_url is not None:
            assert told.tokenizer is not None, "a served pair has one"
            return ServedPair(
                told.expert,
                told.antiexpert,
                expert_url=told.expert_url,
                antiexpert_url=told.antiexpert_url,
                tokenizer=told.tokenizer,
                api_key=_key_in(told.api_key_env),
                top_logprobs=told.top_logprobs,
                expert_prompt=told.expert_prompt,
                antiexpert_prompt=told.antiexpert_prompt,
                exact=self.settings.equation.exact,
                max_retry_seconds=self.settings.limits.max_retry_seconds,
            )
        return TransformersPair(
            told.expert,
            told.antiexpert,
            device=here.device,
            dtype=here.dtype,
            expert_prompt=told.expert_prompt,
            antiexpert_prompt=told.antiexpert_prompt,
            exact=self.settings.equation.exact,
        )

    def drafting(self) -> Drafting:
        """How much is asked for in one request."""
        from blackbox_proxy import Drafting

        told = self.settings.drafting
        if told.tokens is not None:
            return Drafting.fixed(told.tokens)
        prices = self.prices or Prices()
        return Drafting(stream=told.stream, local=told.local, minimise=told.minimise, prices=prices)

    # -- one text -------------------------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """The arguments of `ProxyTuner.generate`. The seed is not among them: it means a run's where there are many."""
        told = self.settings.decoding
        return {
            "max_tokens": told.max_tokens,
            "temperature": told.temperature,
            "top_p": told.top_p,
            "stop": tuple(told.stop),
        }

    def what_decides_the_text(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """What may not change between two parts of a run; where the base is and how it is asked may. vocabulary: the
        base's, once it is open: which tokenizer was found decides, not that it was looked for.
        """
        base, equation, here = self.settings.base, self.settings.equation, self.settings.compute
        spelled = self.tokenizer
        if spelled == "auto":
            spelled = None if base.local or vocabulary is None else vocabulary.fingerprint
        told = [base.model, base.local, base.api, base.dialect, spelled, base.top_logprobs, base.prompt]
        pairs: list[list[Any]] = [
            [pair.expert, pair.antiexpert, pair.expert_prompt, pair.antiexpert_prompt, here.dtype]
            + ([] if pair.expert_url is None else ["served", pair.tokenizer, pair.top_logprobs])
            for pair in self.settings.pairs.values()
        ]
        alphas = [pair.alpha for pair in self.settings.pairs.values()]
        how: list[Any] = [equation.tail, equation.steer, *(["exact"] if equation.exact else [])]
        if equation.tail_size != type(equation)().tail_size:
            how.append(f"tail of {equation.tail_size}")
        if equation.weights is not None:
            how += ["weights", self._weights()]
        several = {"more pairs": [list(each) for each in zip(pairs[1:], alphas[1:], strict=True)]} if pairs[1:] else {}
        return {"base": told, "pair": pairs[0], "decoding": [alphas[0], *how], **several}

    def _weights(self) -> dict[str, Any]:
        """The numbers of the file of weights."""
        from blackbox_proxy.learned import read_learned

        assert self.settings.equation.weights is not None
        return asdict(read_learned(self.settings.equation.weights).weights)

    def shown(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """What a trace says of how its texts were made: no key and no address. vocabulary: the base's, once open."""
        base, pairs, prices = self.settings.base, list(self.settings.pairs.values()), self.settings.budget.prices

        weighed = {} if self.settings.equation.weights is None else {"weights": self._weights()}

        def of_pairs(name: str) -> Any:
            values = [getattr(pair, name) for pair in pairs]
            return values[0] if len(values) == 1 else values

        return {
            "base": base.model,
            "api": base.api,
            "dialect": base.dialect,
            "tokenizer": base.tokenizer,
            "top_logprobs": base.top_logprobs,
            "expert": of_pairs("expert"),
            "antiexpert": of_pairs("antiexpert"),
            **(weighed or {"alpha": of_pairs("alpha")}),
            "tail": self.settings.equation.tail,
            "prices": None if prices is None else ",".join(map(str, prices)),
            "decided_by": self.what_decides_the_text(vocabulary),
        } | self.arguments()


def _key_in(variable: str | None) -> str | None:
    """The key in this environment variable. Raises InputError where one was named that is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY_VARIABLE:
        raise InputError(
            f"the environment variable {variable}, which is to hold a key, is not set", hint=f"export {variable}=…"
        )
    return key or None
