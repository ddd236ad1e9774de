"""The pair behind servers: `ServedPair`, for expert and anti-expert that do not fit this machine.

A session asks a local model for rows after the nodes of a token tree; here each node is a text that the server is given
as token ids, and those of all positions of a draft are one request to each model. Where the base has another
vocabulary a second one asks about what contends there, mostly not needed with real models. What was asked once is
remembered. Only the tokenizer is here.

Where the server shows whole rows (vLLM with --max-logprobs -1, top_logprobs=-1) the scores are those of the same models
on this machine. Where it shows the k likeliest ids, what is left is spread evenly over the rest; of what contends the
others that matter (its own, those on the way to it, where they could have more than a hundredth of what it has) are
asked for by name in a request more, and scores that were summed over such rows are marked "prefix".
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from blackbox_proxy.aligning.alignment import Segmentations
from blackbox_proxy.api.scorer import Logprobs, Scorer, Text
from blackbox_proxy.background import Background
from blackbox_proxy.errors import (
    AccessDenied,
    BaseError,
    ConnectionFailed,
    ContextTooLong,
    InputError,
    ModelNotFound,
    PairServerError,
    VocabularyMismatch,
)
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.models.outputs import Outputs, Rows, Shown
from blackbox_proxy.pair.models import ModelPair
from blackbox_proxy.pair.side import Named, Wanted
from blackbox_proxy.text.files import declared_ends
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Rendering, Usage

T = TypeVar("T")

KEY_VARIABLE = "BLACKBOX_PROXY_PAIR_KEY"
_DEFAULT_K = 256
_REMEMBERED = 16_000_000  # log probabilities of one model that are kept, 8 bytes each
_PROBE = "The 3 naïve mice don't know  it.\n"


_BACKGROUND = Background("blackbox-proxy-pair")  # not that of `tuner`, which may be the one that waits for a score


class ServedPair(ModelPair):
    """A tuned (expert) and an untuned (anti-expert) causal LM with the same vocabulary, at servers that take token ids
    and show log probabilities by id: vLLM, or this project's `host`.

    expert, antiexpert: their names there. expert_url, antiexpert_url: as http://host:8000/v1; the second is the first
    where it is left out (one vLLM serves a model and LoRA adapters of it under several names). tokenizer: folder, hub
    id or Vocabulary, theirs both; it is compared with the servers' own at the first request. api_key: by default
    $BLACKBOX_PROXY_PAIR_KEY.

    top_logprobs: ids that a row shows; -1 for the whole vocabulary, exact, which the server must allow (vLLM:
    --max-logprobs -1) and which is long for a large vocabulary. None: 256, or as many as the server allows.
    end_ids: ids that end a text besides those that the tokenizer's folder names. context: the window, if smaller
    prompts than the server's own limit are to be refused here. Prompts are rendered here, as in TransformersPair.

    Raises ModelUnavailable (tokenizer), VocabularyMismatch, InputError; while it scores PairServerError,
    ContextTooLong.
    """

    def __init__(
        self,
        expert: str,
        antiexpert: str | None = None,
        *,
        expert_url: str,
        antiexpert_url: str | None = None,
        tokenizer: str | os.PathLike[str] | Vocabulary,
        api_key: str | None = None,
        top_logprobs: int | None = None,
        expert_prompt: Rendering = "raw",
        antiexpert_prompt: Rendering = "raw",
        end_ids: Iterable[int] = (),
        context: int | None = None,
        timeout: float = 60.0,
        max_attempts: int = 5,
        max_retry_seconds: float = 600.0,
        trust_remote_code: bool = False,
        segmentations: Segmentations = "canonical",
        exact: bool = False,
    ) -> None:
        if top_logprobs is not None and (isinstance(top_logprobs, bool) or top_logprobs == 0 or top_logprobs < -1):
            raise InputError(f"top_logprobs must be at least 1, or -1 for all, not {top_logprobs!r}")
        if context is not None and context < 1:
            raise InputError(f"context must be positive, not {context}")
        vocabulary = _vocabulary(tokenizer, end_ids, trust_remote_code)
        key = api_key or os.environ.get(KEY_VARIABLE)

        def at(name: str, url: str, what: str) -> RemoteModel:
            scorer = Scorer(
                name,
                base_url=url,
                api_key=key,
                top_logprobs=top_logprobs or _DEFAULT_K,
                # All ids are those that the model has an output for, which need not be all that the tokenizer knows.
                least=len(vocabulary) // 2 if top_logprobs == -1 else top_logprobs or 1,
                timeout=timeout,
                max_attempts=max_attempts,
                max_retry_seconds=max_retry_seconds,
            )
            return RemoteModel(scorer, vocabulary, what, context)

        self._remote = [at(expert, expert_url, "expert")]
        renderings = [expert_prompt]
        if antiexpert is not None:
            self._remote.append(at(antiexpert, antiexpert_url or expert_url, "anti-expert"))
            renderings.append(antiexpert_prompt)
        super().__init__(list(zip(self._remote, renderings, strict=True)), segmentations, exact)

    @property
    def usage(self) -> Usage:
        """What both models were asked so far: requests, tokens as the servers count them, retries; `cached_positions`
        are rows that were known already.
        """
        return sum((model.usage for model in self._remote), Usage())

    def close(self) -> None:
        """Close the connections and forget what is remembered. The pair can be used again."""
        super().close()
        for model in self._remote:
            model.close()


@dataclass(slots=True)
class _Known:
    """What is known of a row: what was shown, and the ids that were named besides."""

    shown: Logprobs
    named: dict[int, float] = field(default_factory=dict)
    _ids: frozenset[int] | None = None

    @property
    def least(self) -> float:
        """No id that is not shown has more."""
        return float(self.shown.values.min())

    def matter(self, wanted: Mapping[int, float]) -> list[int]:
        """Those of these ids that are not shown and could have more than does not matter."""
        least = self.least
        return [index for index, enough in wanted.items() if least > enough and not self.shows(index)]

    def __len__(self) -> int:
        return len(self.shown.ids) + len(self.named)

    def shows(self, index: int) -> bool:
        if self._ids is None:
            self._ids = frozenset(self.shown.ids.tolist())
        return index in self._ids


class RemoteModel:
    """A model at a server, as a session's model. Safe for threads: requests of several texts run side by side."""

    partial = True

    def __init__(self, scorer: Scorer, vocabulary: Vocabulary, what: str, context: int | None = None) -> None:
        self._scorer = scorer
        self._what = what
        self._context = context
        self.name = scorer.model
        self.vocabulary = vocabulary
        self.size = len(vocabulary)
        self._all = scorer.top_logprobs == -1
        self._real = np.array([spelling is not None for spelling in vocabulary.spelling])
        self._rows: OrderedDict[Text, _Known] = OrderedDict()
        self._kept = 0
        self._checked = False
        self._lock = threading.Lock()
        self.usage = Usage()

    def check_length(self, length: int, what: str = "the prompt") -> None:
        if self._context is not None and length > self._context:
            raise ContextTooLong(
                f"{what} has {length} tokens for {self.name}, whose window is {self._context}",
                hint="Shorten the prompt, lower max_tokens, or take a pair with a longer window.",
            )

    def text(self, ids: Sequence[int]) -> RemoteText:
        return RemoteText(self)

    def after(self, texts: Sequence[Text], wanted: Sequence[Mapping[int, float]] = ()) -> Shown:
        """Rows after these texts, (m, V); with the ids that are wanted at each of them, if any are, and the log
        probability up to which each may be guessed.

        At most two requests for all of them (more where there are hundreds), none for what is known. A row depends
        on what the model shows and what is wanted here, never on what others have asked before.
        """
        return _BACKGROUND.run(self._after(texts, wanted or [{}] * len(texts)))

    async def _after(self, texts: Sequence[Text], wanted: Sequence[Mapping[int, float]]) -> Shown:
        try:
            if not self._checked:
                await self._compare()
            known = self._recall(texts)
            missing = [text for text in dict.fromkeys(texts) if text not in known]
            if missing:
                rows, usage = await self._scorer.after(missing)
                self._add(usage)
                known |= self._keep(missing, rows)
            unknown: dict[Text, set[int]] = {}
            for text, ids in zip(texts, wanted, strict=True):
                if found := self._unknown(known[text], ids):
                    unknown.setdefault(text, set()).update(found)
            if unknown:
                named, usage = await self._scorer.reveal(unknown)
                self._add(usage)
                self._name(known, named)
        except BaseError as error:
            raise self._failure(error) from error
        self._add(Usage(cached_positions=len(texts) - len(missing)))
        filled = [self._filled(known[text], ids) for text, ids in zip(texts, wanted, strict=True)]
        edges = np.array([(hidden, least) for _, hidden, least in filled], dtype=np.float32).reshape(-1, 2)
        return Shown(np.stack([row for row, _, _ in filled]), edges[:, 0], edges[:, 1])

    async def _compare(self) -> None:
        """Ask the server once how it cuts a text: with another tokenizer than its own every score would be noise."""
        special = self.vocabulary.special
        theirs = await self._scorer.cut(_PROBE)
        ours = [i for i in self.vocabulary.prompt_ids(_PROBE) if i not in special]
        self._add(Usage(api_calls=1))
        if theirs is not None and [i for i in theirs if i not in special] != ours:
            raise VocabularyMismatch(
                f"the server of the {self._what} {self.name} cuts text into other tokens than the tokenizer given: "
                f"{list(theirs[:6])} … instead of {list(ours[:6])} …",
                hint="Give the tokenizer of the model that is served there.",
            )
        self._checked = True

    def _unknown(self, known: _Known, ids: Mapping[int, float]) -> set[int]:
        if not ids or self._is_whole(known):
            return set()
        return {i for i in known.matter(ids) if i < self.size and self._real[i] and i not in known.named}

    def _is_whole(self, known: _Known) -> bool:
        """Whether there are no more ids than those shown: padding among them may have taken the place of some."""
        ids = known.shown.ids
        everything = self._all and (self._scorer.top_logprobs == -1 or int(ids.max()) < self.size)
        return everything or len(ids) >= self.size

    def _filled(self, known: _Known, wanted: Mapping[int, float]) -> tuple[Rows, float, float]:
        """A row with what was shown and what is wanted, what each of the other ids got, and the most it could have
        got.
        """
        asked = {i: enough for i, enough in wanted.items() if i in known.named}  # none of a whole row
        named = {i: known.named[i] for i in known.matter(asked)}
        ids = np.concatenate([np.fromiter(named, np.int32, len(named)), known.shown.ids])
        values = np.concatenate([np.fromiter(named.values(), np.float64, len(named)), known.shown.values])
        row = np.full(self.size, -np.inf)
        inside = ids < self.size  # padding of the model's output is no id of the vocabulary
        row[ids[inside]] = values[inside]
        row[~self._real] = -np.inf
        rest = self._real.copy()
        rest[ids[inside]] = False
        count = int(rest.sum())
        if count == 0 or self._is_whole(known):
            return (row - logsumexp(row)).astype(np.float32), -np.inf, -np.inf
        mass = max(1.0 - float(np.exp(values).sum()), 1e-9)
        least = known.least
        hidden = float(np.float32(min(np.log(mass / count), least)))
        row[rest] = hidden
        return row.astype(np.float32), hidden, least

    # -- what is remembered -------------------------------------------------------------------------------------------

    def _recall(self, texts: Iterable[Text]) -> dict[Text, _Known]:
        found = {}
        with self._lock:
            for text in texts:
                if text in self._rows:
                    self._rows.move_to_end(text)
                    found[text] = self._rows[text]
        return found

    def _keep(self, texts: Sequence[Text], rows: Sequence[Logprobs]) -> dict[Text, _Known]:
        kept = {text: _Known(row) for text, row in zip(texts, rows, strict=True)}
        with self._lock:
            for text, known in kept.items():
                if text not in self._rows:
                    self._rows[text] = known
                    self._kept += len(known)
            while self._kept > _REMEMBERED and len(self._rows) > 1:
                _, old = self._rows.popitem(last=False)
                self._kept -= len(old)
        return kept

    def _name(self, known: Mapping[Text, _Known], named: Mapping[Text, Mapping[int, float]]) -> None:
        with self._lock:
            for text, row in named.items():
                own, before = known[text], len(known[text])
                more = {i: value for i, value in row.items() if not own.shows(i)}
                own.named = {**own.named, **more}  # anew: another thread may be reading the old one
                if self._rows.get(text) is own:
                    self._kept += len(own) - before

    def _add(self, usage: Usage) -> None:
        with self._lock:
            self.usage += usage

    def close(self) -> None:
        with self._lock:
            self._rows.clear()
            self._kept = 0
        _BACKGROUND.run(self._scorer.aclose())

    def _failure(self, error: BaseError) -> PairServerError:
        """The same error as one of the pair's: what is wrong, and with which of the two."""
        hint = error.hint
        if isinstance(error, AccessDenied):
            hint = f"Set the environment variable {KEY_VARIABLE}, or pass api_key=…."
        elif isinstance(error, ConnectionFailed):
            hint = f"Check the {self._what}'s URL, that its server runs, and the network."
        elif isinstance(error, ModelNotFound):
            hint = f"Check the {self._what}'s name at the server (GET /v1/models), and its URL: it usually ends in /v1."
        elif "logprobs" in str(error):
            hint = "Leave out top_logprobs, or start the server with a higher limit (vLLM: --max-logprobs -1)."
        status = getattr(error, "status", None)
        return PairServerError(f"{self._what}: {error}", hint, status=status, retryable=error.retryable)


class RemoteText:
    """A text in a model at a server: places of it are asked for as texts of their own."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model

    def read(self, ids: Sequence[int]) -> None:
        """The server reads what it is asked about."""

    def close(self) -> None: ...

    def advance(self, ids: Sequence[int], keep: int = 1, wanted: Wanted | None = None) -> Outputs:
        if not 1 <= keep <= len(ids):
            raise ValueError(f"keep must be between 1 and the {len(ids)} tokens of the text")
        whole = tuple(ids)
        return self._after([whole[: len(whole) - keep + 1 + j] for j in range(keep)], _all_matter(wanted))

    def branch(
        self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int], wanted: Wanted | None = None
    ) -> Outputs:
        texts = [tuple(ids)]
        for parent, token in zip(parents, tokens, strict=True):
            texts.append((*texts[parent + 1], token))
        return self._after(texts, _all_matter(wanted))

    def places(self, texts: Sequence[Sequence[int]], wanted: Named) -> Outputs:
        return self._after([tuple(ids) for ids in texts], wanted)

    def _after(self, texts: Sequence[Text], wanted: Named) -> Outputs:
        self._model.check_length(max(map(len, texts)), "the text")
        return self._model.after(texts, [wanted.get(row, {}) for row in range(len(texts))])


def _all_matter(wanted: Wanted | None) -> Named:
    """Ids that are wanted however little they have."""
    return {row: dict.fromkeys(ids, -math.inf) for row, ids in (wanted or {}).items()}


def _vocabulary(
    tokenizer: str | os.PathLike[str] | Vocabulary, end_ids: Iterable[int], trust_remote_code: bool
) -> Vocabulary:
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    name = os.fspath(tokenizer)
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
    return from_pretrained(name, end_ids=[*end_ids, *declared_ends(name)], trust_remote_code=trust_remote_code)
