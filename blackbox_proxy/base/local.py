"""The base's own weights in this process: the whole distribution at every position, no API in between.

`TransformersBase` is for users who have the big model (the paper's main setting), and it is the engine behind
`blackbox-proxy host`. Without `top_logprobs` it shows every token of the vocabulary; candidates stay columns (numpy
ids and log probabilities), because a `Token` object for each of 100,000 candidates would cost more than the model.

A few texts keep their KV caches (`Slots`), so that decoding one token at a time reads one token at a time. All forward
passes run on one thread of this base's own: the event loop stays free, and torch starts one team of workers, not one
for every thread that happens to ask.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

from blackbox_proxy.api.naming import from_row, logit_bias
from blackbox_proxy.base.showing import REPEATS_SEEN, Showing
from blackbox_proxy.errors import ContextTooLong, InputError
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.models.trunk import Slots
from blackbox_proxy.protocols import Abilities, Ask, Revealed
from blackbox_proxy.text.identity import spelling_identity
from blackbox_proxy.text.prompts import check_text
from blackbox_proxy.text.vocabulary import Vocabulary, VocabularyTokens, is_ids
from blackbox_proxy.types import Draft, FinishReason, Position, Prefix, Prompt, Rendering, Token, Usage

T = TypeVar("T")

_WORTH_COPYING = 32  # tokens shared with another text from which on copying its cache beats reading them again
_CHEAP_LOSS = 8  # tokens that are cut off a cache without keeping a copy: a replaced token and its draft
_ECHO_NUMBERS = 1 << 24  # log probabilities computed at a time when text is scored (64 MiB of float32)


class TransformersBase:
    """A local causal LM as a `Base`. V below is the number of ids that mean something and that the model can emit.

    model: a folder, a hub id, or a `CausalLM` that is already loaded. top_logprobs: how many candidates to show at
    each position, None for all V. rendering: how the model is shown a prompt. slots: how many texts keep their KV
    cache. Raises ModelUnavailable, InputError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CausalLM,
        *,
        top_logprobs: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        rendering: Rendering = "raw",
        trust_remote_code: bool = False,
        slots: int = 4,
    ) -> None:
        if top_logprobs is not None and top_logprobs < 1:
            raise InputError("top_logprobs must be at least 1", hint="Leave it out to see the whole vocabulary.")
        if not isinstance(model, CausalLM):
            model = load_causal_lm(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        self._lm = model
        vocabulary = model.vocabulary
        outputs = int(model.model.config.get_text_config(decoder=True).vocab_size)
        self._known = min(outputs, len(vocabulary))
        self.size = sum(spelling is not None for spelling in vocabulary.spelling[: self._known])
        self.top_logprobs = self.size if top_logprobs is None else min(top_logprobs, self.size)
        self._rendering = rendering
        self._rendered = lru_cache(maxsize=256)(lambda text: vocabulary.prompt_ids(text, rendering))
        self._slots = Slots(model, slots)
        self._reading = threading.Lock()  # held while the model reads
        self._starting = threading.Lock()  # held for moments: the thread is made by whoever comes first
        self._thread: ThreadPoolExecutor | None = None

    @property
    def name(self) -> str:
        return self._lm.name

    @property
    def vocabulary(self) -> Vocabulary:
        return self._lm.vocabulary

    @property
    def known(self) -> int:
        """How many ids there are: those of the vocabulary that the model can emit."""
        return self._known

    @property
    def context(self) -> int | None:
        return self._lm.context

    # -- what can be asked ----------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids the model is shown for a prompt. Raises InputError if there are none, or an id is not the model's."""
        for text in [prompt] if isinstance(prompt, str) else [] if is_ids(prompt) else prompt:
            check_text(str(text["content"] if isinstance(text, Mapping) else text))
        if isinstance(prompt, str) and isinstance(self._rendering, str):
            ids = self._rendered(prompt)
        else:
            ids = self.vocabulary.prompt_ids(prompt, self._rendering) if len(prompt) else ()
        if not ids:
            raise InputError("the prompt is empty", hint="This model needs at least one token to continue from.")
        if is_ids(prompt) and not (min(ids) >= 0 and max(ids) < self._known):
            raise InputError(
                f"the prompt has token ids outside the vocabulary of {self.name}",
                hint=f"Its ids are 0 to {self._known - 1}.",
            )
        return ids

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise InputError for an empty prompt, ContextTooLong if prompt and text do not fit the window."""
        length = len(self.prompt_ids(prompt))
        if self.context is not None and length + max_tokens > self.context:
            raise ContextTooLong(
                f"the prompt has {length} tokens and {max_tokens} are to follow, but the window of {self.name} is "
                f"{self.context}",
                hint="Shorten the prompt or lower max_tokens.",
            )

    def can_continue(self, prefix: Prefix) -> bool:
        """True wherever every issued token has an id."""
        return all(token.id is not None for token in prefix.tokens)

    def room(self, prefix: Prefix) -> int | None:
        """How many more tokens fit the window after this prefix; None where the model has no limit."""
        if self.context is None:
            return None
        return max(0, self.context - len(self.prompt_ids(prefix.prompt)) - len(prefix.tokens))

    # -- asking ---------------------------------------------------------------------------------------------------

    @property
    def abilities(self) -> Abilities:
        """It scores given tokens, and draws from what it shows. It does not claim to stream: no round trip is saved."""
        return Abilities(scores=True, reveals=self._known, biases=self._known, here=True)

    @property
    def identity(self) -> Mapping[str, object] | None:
        """The weights themselves, not where they lie: reads all of them, the first time. None where a function renders
        the prompt: what it does cannot be told.
        """
        if callable(self._rendering):
            return None
        return {
            "weights": self._weights,
            "device": str(self._lm.device.type),
            "top_logprobs": self.top_logprobs,
            "rendering": self._rendering,
            "tokenizer": spelling_identity(self.vocabulary, self._rendering),
        }

    @cached_property
    def _weights(self) -> str:
        return fingerprint(self._lm.model)

    async def draft(self, ask: Ask) -> Draft:
        """The model's own continuation: at most n positions, the last one the end token where it ends its text.

        `given` tokens come first, read in one pass with the first token of the continuation; from the first of them
        that has no id or is an end on, there is nothing. Counts as one call in `usage`, like a request to an API.
        Raises InputError, ContextTooLong, BadResponse.
        """
        stream = self.positions(ask.prefix, ask.n, temperature=ask.temperature, seed=ask.seed, given=ask.given)
        async with aclosing(stream):
            positions = tuple([position async for position in stream])
        sent = len(self._readable(ask.given))
        own = positions[sent:]
        read = len(self.prompt_ids(ask.prefix.prompt)) + len(ask.prefix.tokens) + sent
        usage = Usage(1, read, len(own))
        finish: FinishReason | None = None
        if own:
            finish = "stop" if own[-1].token.end else "length"
        return Draft(positions, finish, usage, sent)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        """The whole draft in one part."""
        yield await self.draft(ask)

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        """log q of any tokens as the next one; all end tokens are one event. NaN for tokens without an id."""
        ids = self._ids(prefix)
        self._check_window(len(ids) + 1)
        row = await self._on_thread(lambda: self._rows(ids, keep=1)[0].cpu().numpy().astype(np.float64))
        return Revealed(from_row(tokens, row, self.vocabulary), Usage(1, len(ids), 1))

    async def steer(
        self,
        prefix: Prefix,
        bias: Mapping[Token, float],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Draft:
        """One token from softmax((log q + bias) / temperature)."""
        ids = self._ids(prefix)
        self._check_window(len(ids) + 1)
        spelled = {int(index): value for index, value in logit_bias(bias, self.vocabulary, self._known).items()}
        stream = self.positions(
            prefix, 1, temperature=temperature, top_p=top_p, seed=seed, showing=Showing(0, bias=spelled)
        )
        async with aclosing(stream):
            (position,) = [position async for position in stream]
        return Draft((position,), "stop" if position.token.end else "length", Usage(1, len(ids), 1))

    async def positions(
        self,
        prefix: Prefix,
        n: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        top_logprobs: int | None = None,
        given: Sequence[Token] = (),
        showing: Showing | None = None,
    ) -> AsyncGenerator[Position, None]:
        """The draft position by position; closing the generator stops the model after the token in progress.

        temperature 0 takes the most likely token (the lowest id on ties), otherwise tokens are drawn from
        softmax(log q / temperature), cut to the smallest set that holds `top_p` of the mass. The log probabilities
        shown are the model's own at temperature 1. The same text with the same seed gets the same token, however
        many are asked for at once, or given. `top_logprobs`: how many candidates to show here, 0 for none; None for
        what the base was made with. showing: how a server shows and bends this, in place of `top_logprobs`.
        """
        if n < 1:
            raise InputError(f"at least one token must be asked for, not {n}")
        if seed is None:
            seed = int(np.random.default_rng().integers(2**63))
        sampling = Sampling(temperature, top_p, seed)
        showing = showing or Showing(self._shown(top_logprobs))
        ids = self._ids(prefix)
        start, sent = len(ids), self._readable(given)
        ids += sent
        self._check_window(len(ids) + 1)
        goes_on = len(sent) == len(given)
        async with aclosing(self._scan(ids, start, len(ids) + goes_on, showing, sampling)) as scan:
            async for position in scan:
                yield position
        if not goes_on:
            return
        if self.context is not None:
            n = min(n, self.context - len(ids))
        for _ in range(n - 1):
            if position.token.end or position.token.id is None:
                return
            ids.append(position.token.id)
            [position] = await self._on_thread(partial(self._read, ids, len(ids), len(ids) + 1, showing, sampling))
            yield position

    async def echo(
        self, ids: Sequence[int], *, top_logprobs: int | None = None, last: int | None = None
    ) -> list[Position]:
        """Score given text: position j shows the candidates before token j and the log probability of that token.

        The first token has neither: nothing comes before it. `last`: only so many tokens at the end are scored and
        returned, None for all. Raises InputError, ContextTooLong, BadResponse.
        """
        text = list(self.prompt_ids(tuple(ids)))
        self._check_window(len(text))
        start = 0 if last is None else max(0, len(text) - last)
        nothing = VocabularyTokens(np.empty(0, np.int64), self.vocabulary)
        first = [Position(self.vocabulary.token_of(text[0]), None, nothing, np.empty(0))] if start == 0 else []
        scan = self._scan(text, max(start, 1), len(text), Showing(self._shown(top_logprobs)), Sampling())
        return first + [position async for position in scan]

    async def aclose(self) -> None:
        """Drop the KV caches and the thread. The base can still be used; both are made anew then."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._slots.clear)
            thread.shutdown(wait=False)

    # -- on the model's thread ------------------------------------------------------------------------------------

    async def _on_thread(self, work: Callable[[], T]) -> T:
        with self._starting:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="base")
            thread = self._thread
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    async def _scan(
        self, ids: list[int], start: int, end: int, showing: Showing, sampling: Sampling
    ) -> AsyncGenerator[Position, None]:
        """`_read` in passes of a bounded size."""
        step = max(1, _ECHO_NUMBERS // self._known)
        if not self._lm.caches:
            step = max(1, end - start)  # every pass reads the text from its start
        for first in range(start, end, step):
            for position in await self._on_thread(
                partial(self._read, ids, first, min(first + step, end), showing, sampling)
            ):
                yield position

    def _read(self, ids: list[int], start: int, end: int, showing: Showing, sampling: Sampling) -> list[Position]:
        """Positions start to end - 1 of a text, start >= 1; the one after its last token (end = len(ids) + 1) is the
        model's own choice.
        """
        rows = self._rows(ids[: end - 1], keep=end - start)
        return [
            showing.position(
                row,
                ids[place] if place < len(ids) else None,
                place,
                sampling,
                self.vocabulary,
                ids[max(0, place - REPEATS_SEEN) : place],
            )
            for place, row in zip(range(start, end), rows, strict=True)
        ]

    def _rows(self, ids: list[int], keep: int) -> torch.Tensor:
        """Log probabilities (keep, V) of what follows the last `keep` of `ids`."""
        with self._reading:
            return self._slots.advance(ids, keep)

    # -- small things ---------------------------------------------------------------------------------------------

    def _ids(self, prefix: Prefix) -> list[int]:
        issued = [token.id for token in prefix.tokens if token.id is not None]
        if len(issued) < len(prefix.tokens):
            raise InputError(
                f"{self.name} cannot continue from a token whose id is unknown",
                hint="Issue back the tokens that this base has shown.",
            )
        return [*self.prompt_ids(prefix.prompt), *issued]

    def _readable(self, given: Sequence[Token]) -> list[int]:
        """The ids of the given tokens, up to the first that cannot be continued from."""
        ids = []
        for token in given:
            if token.end or token.id is None or not 0 <= token.id < self._known:
                break
            ids.append(token.id)
        return ids

    def _check_window(self, length: int) -> None:
        if self.context is not None and length > self.context:
            raise ContextTooLong(
                f"the text has {length} tokens, but the window of {self.name} is {self.context}",
                hint="Shorten the prompt or lower max_tokens.",
            )

    def _shown(self, wanted: int | None) -> int:
        return self.top_logprobs if wanted is None else min(max(wanted, 0), self.top_logprobs)


@torch.inference_mode()
def fingerprint(model: Any) -> str:
    """A digest of a model's configuration and of every weight: exact sums over their bytes, and samples of them."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        raw = weight.detach().contiguous().reshape(-1).view(torch.uint8)
        words = raw[: len(raw) // 4 * 4].view(torch.int32) if weight.element_size() % 4 == 0 else raw
        sample = raw[:: max(1, len(raw) // 4093)].cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {int(words.sum(dtype=torch.int64))} ".encode())
        digest.update(sample)
    return digest.hexdigest()[:32]
