"""`ProxyTuner`: a base, a pair and a weight put together; async inside, a sync façade over one background loop."""

from __future__ import annotations

import asyncio
import copy
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, Literal, Self, TypeVar, cast, get_args, overload

from blackbox_proxy.answers.choices import Choice, Missing, Normalise, Rule, choose
from blackbox_proxy.answers.scoring import Score, score
from blackbox_proxy.background import Background
from blackbox_proxy.decoding.biased import decode_biased
from blackbox_proxy.decoding.loop import decode
from blackbox_proxy.decoding.pace import Drafting, Pace
from blackbox_proxy.decoding.prompted import check_prompt
from blackbox_proxy.decoding.text import Limits
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.maths.equation import Alpha, Equation
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.text.shown import told
from blackbox_proxy.types import Generation, Prompt, Step, TailPolicy, Usage

T = TypeVar("T")
Steer = Literal["candidates", "bias"]


class Texts(ABC):
    """Everything that makes texts, over the steps of one (`astream`): whoever changes that has changed them all."""

    equation: Equation

    @abstractmethod
    def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Step]:
        """The steps of the text as they are decided."""

    @abstractmethod
    def check(self, prompt: Prompt, max_tokens: int = 256) -> None:
        """Raise InputError where this prompt cannot be decoded; sends nothing and runs no model."""

    async def agenerate(self, prompt: Prompt, **options: Any) -> Generation:
        """The whole text with its steps and its cost; options as for `astream`.

        Where an error ends the text too early, its `steps` are what there was of it.
        """
        steps: list[Step] = []
        try:
            async for step in self.astream(prompt, **options):
                steps.append(step)  # noqa: PERF401 (an error must not lose them)
        except BlackboxError as error:
            error.steps = tuple(steps)
            raise
        usage = sum((step.usage for step in steps), Usage())
        finish, text = steps[-1].finish_reason, "".join(step.text for step in steps)
        assert finish is not None, "decode ends with a step that says why"
        return Generation(text, tuple(steps), finish, usage, self.equation.tail, steps[-1].reason)

    @overload
    async def agenerate_batch(
        self, prompts: Sequence[Prompt], *, return_exceptions: Literal[True], **options: Any
    ) -> list[Generation | BlackboxError]: ...
    @overload
    async def agenerate_batch(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]: ...
    async def agenerate_batch(
        self, prompts: Sequence[Prompt], *, concurrency: int = 8, return_exceptions: bool = False, **options: Any
    ) -> Sequence[Generation | BlackboxError]:
        """One Generation for each prompt, in order, at most `concurrency` at a time.

        All prompts are checked before the first request. Each text is the one that `agenerate` gives for its prompt.
        After an error no further text is begun; those on their way are finished, and the error that is raised has them
        all (`BlackboxError.finished`). return_exceptions: an error stands in its prompt's place instead, one of the
        check included, and ends no other text.
        """
        if concurrency < 1:
            raise InputError(f"concurrency must be at least 1, not {concurrency}", hint="Leave it out for 8.")
        failed: dict[int, BlackboxError] = {}
        finished: dict[int, Generation] = {}
        for place, prompt in enumerate(prompts):
            try:
                self.check(prompt, int(options.get("max_tokens", 256)))
            except BlackboxError as error:
                if not return_exceptions:
                    raise
                failed[place] = error
        waiting = iter([place for place in range(len(prompts)) if place not in failed])

        async def work() -> None:
            for place in waiting:
                try:
                    finished[place] = await self.agenerate(prompts[place], **options)
                except BlackboxError as error:
                    failed[place] = error
                if failed and not return_exceptions:
                    return

        async with _unwrapped(), asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(prompts))):
                group.create_task(work())
        if failed and not return_exceptions:
            first = next(iter(failed.values()))
            first.finished = dict(sorted(finished.items()))
            first.failed = {place: error for place, error in sorted(failed.items()) if error is not first}
            raise first
        return [failed[place] if place in failed else finished[place] for place in range(len(prompts))]

    # -- the same, without async -----------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """`agenerate` for callers without a loop (it may be called while one runs, too)."""
        return run(self.agenerate(prompt, **options))

    @overload
    def generate_batch(
        self, prompts: Sequence[Prompt], *, return_exceptions: Literal[True], **options: Any
    ) -> list[Generation | BlackboxError]: ...
    @overload
    def generate_batch(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]: ...
    def generate_batch(self, prompts: Sequence[Prompt], **options: Any) -> Any:
        """`agenerate_batch` for callers without a loop."""
        return run(self.agenerate_batch(prompts, **options))

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Step]:
        """`astream` for callers without a loop. Closing the iterator ends the text."""
        steps = cast(Any, self.astream(prompt, **options))
        try:
            while (step := run(_next(steps))) is not None:
                yield step
        finally:
            run(steps.aclose())


class ProxyTuner(Texts):
    """Decodes `base` as if it had been tuned as the pair's expert was (proxy-tuning, arXiv 2401.08565).

    pair: one pair or several, each with its own `alpha` (DExperts, arXiv 2105.03023). alpha: a number, or a function
    of the place in the text; 1 is plain proxy-tuning, 0 the base itself; one for all pairs or one each. `tail`: what
    is done about tokens that the base does not show ("backoff", "truncate", "floor", "ask"; see `equation.tail`);
    `tail_size`: how many of them the expert may propose. `draft`: how the base is asked for drafts (see `Drafting`),
    or a number, for that many tokens per request; the number of calls depends on it, the text does not.

    steer: "candidates" weighs what the API shows; "bias" sends the offset as a `logit_bias`, for APIs that show few log
    probabilities or none (one request a token, see `biased`; `tail` and `draft` mean nothing there).

    weights: learned ones (`calibrate`), in the place of alpha. They were learned for one base, k and pair: a file that
    `calibrate` wrote is checked against them by `read_weights`.

    A greedy text is the same for every `draft`, a sampled one follows the same distribution: drafts are accepted with
    min(1, p/q) where the API draws from what it shows (`Abilities.draws`), else where they equal p's own draw. A seed
    repeats a sampled text as far as the API repeats its own drafts.

    Every method takes: prompt (text or messages), max_tokens, temperature (0 is greedy), top_p, seed (any int; None
    draws one), stop (a string or several). Raises InputError before anything is spent, BaseError and PairError (see
    `errors`).
    """

    def __init__(
        self,
        base: Base,
        pair: Pair | Sequence[Pair],
        alpha: Alpha | Sequence[Alpha] = 1.0,
        *,
        tail: TailPolicy = "backoff",
        tail_size: int = 32,
        draft: int | Drafting | None = None,
        steer: Steer = "candidates",
        weights: Weights | None = None,
    ) -> None:
        self.base = base
        self.pairs: tuple[Pair, ...] = tuple(pair) if isinstance(pair, Sequence) else (pair,)
        if not self.pairs:
            raise InputError("there is no pair", hint="Give at least one pair of expert and anti-expert.")
        alphas = tuple(alpha) if isinstance(alpha, Sequence) else (alpha,) * len(self.pairs)
        if len(alphas) != len(self.pairs):
            raise InputError(
                f"there are {len(self.pairs)} pairs but {len(alphas)} alphas", hint="Give one or one each."
            )
        if steer not in get_args(Steer):
            raise InputError(f"unknown way to steer {steer!r}", hint='Use "candidates" or "bias".')
        self.steer: Steer = steer
        if weights is not None:
            self._check_weights(weights, plain=alphas == (1.0,) * len(alphas))
        self.equation = Equation(alphas, tail, tail_size, weights)
        self.drafting = Drafting.fixed(draft) if isinstance(draft, int) else draft or Drafting()
        self._pace = Pace(self.drafting, here=base.abilities.here)

    def _check_weights(self, weights: Weights, *, plain: bool) -> None:
        if not plain:
            raise InputError(
                "there are weights and an alpha", hint="Weights take alpha's place: leave one of them out."
            )
        has = [pair.has_antiexpert for pair in self.pairs]
        wanted = [weight is not None for weight in weights.antiexperts]
        if wanted != has:
            raise InputError(
                f"the weights are of {len(wanted)} experts and {sum(wanted)} anti-experts, and here are {len(has)} and "
                f"{sum(has)}",
                hint="Weights belong to the pair that they were learned with.",
            )
        if self.steer == "bias" and weights.alphas is None:
            raise InputError(
                "learned weights cannot be sent as a logit_bias: they weigh the base's own log q as well, which stays "
                "on the server",
                hint='Use steer="candidates", or alpha.',
            )

    @classmethod
    def of(cls, base: Base, pairs: Sequence[Pair], equation: Equation, drafting: Drafting) -> Self:
        """A tuner with a whole equation."""
        return cls(base, pairs, draft=drafting).altered(equation=equation)

    def altered(
        self, *, base: Base | None = None, equation: Equation | None = None, drafting: Drafting | None = None
    ) -> Self:
        """The same tuner but for these."""
        other = copy.copy(self)
        other.base = self.base if base is None else base
        other.equation = self.equation if equation is None else equation
        other.drafting = self.drafting if drafting is None else drafting
        other._pace = Pace(other.drafting, here=other.base.abilities.here)
        return other

    async def astream(  # type: ignore[override]  # it says which options there are
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> AsyncIterator[Step]:
        """The steps of the text as they are decided."""
        prompt = self._told(prompt)
        limits = Limits(max_tokens, (stop,) if isinstance(stop, str) else tuple(stop))
        sampling = Sampling(temperature, top_p, secrets.randbits(63) if seed is None else seed)
        self.check(prompt, max_tokens)
        repeatable = temperature > 0.0 and seed is not None
        pace = Pace(self.drafting, measures=False, here=self.base.abilities.here) if repeatable else self._pace
        steps = (
            decode_biased(self.base, self.pairs, prompt, self.equation, limits, sampling)
            if self.steer == "bias"
            else decode(self.base, self.pairs, prompt, self.equation, limits, sampling, pace)
        )
        try:
            async for step in steps:
                yield step
        finally:
            await cast(Any, steps).aclose()

    def check(self, prompt: Prompt, max_tokens: int = 256) -> None:
        prompt = self._told(prompt)
        if not isinstance(prompt, str) and len(prompt) == 0:
            raise InputError("the prompt is empty", hint="Give text, or at least one message.")
        if isinstance(prompt, str) and not prompt:
            raise InputError("the prompt is empty", hint="Give at least one character of text.")
        if self.steer == "bias" and self.base.abilities.biases == 0:
            raise InputError(
                f"{self.base.name} takes no logit_bias, as far as its dialect and tokenizer tell",
                hint='Give open_base the base\'s tokenizer: a bias names token ids. Or use steer="candidates".',
            )
        if self.equation.tail == "ask" and self.base.abilities.reveals == 0:
            raise InputError(
                f"{self.base.name} cannot be asked about tokens that it does not show",
                hint='Use tail="backoff". Asking needs a server that scores given text, or named tokens (vLLM).',
            )
        check_prompt(self.pairs, prompt, max_tokens)
        self.base.check(prompt, max_tokens)

    def _told(self, prompt: Prompt) -> Prompt:
        """The prompt as base and pairs are told it: text parts joined, token ids as text for the pairs."""
        return told(prompt, self.base.vocabulary)

    # -- given text -----------------------------------------------------------------------------------------------

    async def achoose(
        self,
        prompt: Prompt,
        options: Sequence[str],
        *,
        missing: Missing = "backoff",
        forms: bool = True,
        normalise: Normalise = "none",
    ) -> Choice:
        """Which of a few answers the tuned model gives: one request of one token, where each option is one.

        Takes the prompt as it stands (ending in "Answer:", say). missing, forms, normalise: see `choices.Rule`. Options
        of several tokens are scored as they are written, so give them their space: " New York".
        """
        rule = Rule(missing, forms, normalise)
        (choice,) = await choose(self.base, self.pairs, self._told(prompt), options, [self.equation], rule=rule)
        return choice

    async def ascore(self, prompt: Prompt, continuation: str) -> Score:
        """How likely the tuned model finds this text after the prompt. InputError where the base scores no text."""
        (scored,) = await score(self.base, self.pairs, self._told(prompt), continuation, [self.equation])
        return scored

    # -- the same, without async -----------------------------------------------------------------------------------

    def choose(self, prompt: Prompt, options: Sequence[str], **how: Any) -> Choice:
        """`achoose` for callers without a loop."""
        return run(self.achoose(prompt, options, **how))

    def score(self, prompt: Prompt, continuation: str) -> Score:
        """`ascore` for callers without a loop."""
        return run(self.ascore(prompt, continuation))

    def close(self) -> None:
        """Give back the connections of the base and the caches of the pairs."""
        run(self.base.aclose())
        for pair in self.pairs:
            pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _next(steps: AsyncIterator[Step]) -> Step | None:
    return await anext(steps, None)


class _unwrapped:
    """Let the first error out of a TaskGroup as itself: callers know BlackboxError, not ExceptionGroup."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None


_BACKGROUND = Background("blackbox-proxy")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it: clients that were used there must be closed there."""
    return _BACKGROUND.run(work)
