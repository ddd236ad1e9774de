"""`tokenizer="auto"`: which tokenizer a server's model has, as the server tells it, held to how the server cuts texts.

Nothing that costs is asked, nobody but the server itself, and nothing is downloaded. What is not sure is unknown:

- OpenAI's own service: by tiktoken's table of its models, if the encoding's file is on this machine. There is nothing
  to check it by but the tokens of answers, so each of them must be one of the encoding's.
- servers that tell (`Dialect.telling`): what they name, if it is on this machine and cuts `TEXTS` as the server does.
- any other server: unknown. The name of a model, or of a deployment at Azure, is whatever somebody has given it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from blackbox_proxy.api.telling import TEXTS, Cuts, cuts_of, names_of, telling_of
from blackbox_proxy.background import apart
from blackbox_proxy.dialects.guessing import AUTO, by_url
from blackbox_proxy.dialects.table import Dialect, Telling
from blackbox_proxy.dialects.tokenizers import Kept, forget, keep, recall
from blackbox_proxy.errors import BaseError, BlackboxError, ConnectionFailed, Misspelled, ModelUnavailable
from blackbox_proxy.text.here import encoding_here, encoding_of, tokenizer_here
from blackbox_proxy.text.identity import spelling_identity
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.address import shown_url
from blackbox_proxy.transport.connection import Connection
from blackbox_proxy.transport.limits import Limiter
from blackbox_proxy.types import Draft

log = logging.getLogger(__name__)
"""Says which tokenizer was found, or why none was: at INFO what is in order, at WARNING what is not."""

_SECONDS = 5.0  # without a byte
_PATIENCE = 10.0
_OWN_WAY = "it counts as unknown; tokenizer=… (--tokenizer) names it"
_NOT_IT = "Name the model's tokenizer, or say that it is unknown: tokenizer=None (--tokenizer none)."
_said: set[str] = set()


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a tokenizer. assumed: nothing but the tokens of answers can show whether it is the right one.
    forget: what was kept about it.
    """

    vocabulary: Vocabulary | None = None
    name: str | None = None
    assumed: bool = False
    forget: Callable[[], None] | None = None

    def check(self, draft: Draft) -> None:
        """Raise Misspelled where an answer has tokens that are none of an assumed tokenizer's."""
        for position in draft.positions if self.assumed else ():
            token = position.token
            if token.bytes and token.id is None and not token.end:
                raise Misspelled(f"the answer's {token.text!r} is no token of {self.name}", hint=_NOT_IT)

    def doubts(self, error: BaseError) -> None:
        """Keep no tokenizer that an answer speaks against, or may; where it does, say so in the error."""
        if self.forget is not None:
            self.forget()
            if isinstance(error, Misspelled) or "token id" in str(error).lower():
                error.hint = f"The tokenizer was {self.name}, as found for this server; that is forgotten: try again."


@dataclass(frozen=True, slots=True)
class _Server:
    model: str
    url: str
    key: str
    key_header: str | None
    timeout: float

    @property
    def where(self) -> str:
        return shown_url(self.url)

    @property
    def patience(self) -> float:
        """Seconds for all that is asked."""
        return min(_PATIENCE, 10 * self.timeout)

    def connection(self) -> Connection:
        return Connection(
            "completions",
            self.model,
            self.where,
            base_url=self.url,
            key=self.key,
            timeout=min(self.timeout, _SECONDS),
            limiter=Limiter(),
            key_header=self.key_header,
        )


def find_tokenizer(model: str, url: str, key: str, spoken: Dialect, *, named: str, timeout: float) -> Found:
    """The tokenizer of a model at a URL; none where it is not sure. spoken: the dialect; named: as the caller gave it,
    since a server whose dialect nobody knows is asked for that. Raises nothing that a server could cause.
    """
    server = _Server(model, url, key, spoken.key_header, timeout)
    service = by_url(url)
    if service is not None and service.name == "openai":
        return _of_service(server)
    kept = recall(server.where, model)
    if kept is not None and (found := _as_kept(server, kept, spoken)) is not None:
        return found
    if spoken.telling is None and (named != AUTO or service is not None):
        return Found()
    try:
        telling, names, cuts = apart(_asked(server, spoken.telling))
    except (BaseError, TimeoutError) as error:
        why = str(error) or f"no answer after {server.patience:g} s"
        what = f"{server.where} does not tell its tokenizer"
        _say(logging.WARNING, f"{what}, {_OWN_WAY} ({why})", once=what)
        return Found()
    return Found() if telling is None else _held(server, spoken, names, cuts)


async def _asked(server: _Server, telling: Telling | None) -> tuple[Telling | None, list[str], Cuts]:
    """How it tells its tokenizer, what it names, and how it cuts texts. Raises BaseError, TimeoutError."""
    connection, models = server.connection(), None
    try:
        async with asyncio.timeout(server.patience):
            if telling is None:
                telling, models = await telling_of(connection)
            if telling is None:
                return None, [], ()
            names = await names_of(connection, server.url, server.model, telling, models)
            cuts = await cuts_of(connection, server.url, server.model, telling) if names else ()
            return telling, names, cuts
    finally:
        await connection.aclose()


def _held(server: _Server, spoken: Dialect, names: list[str], cuts: Cuts) -> Found:
    """What it names, if that is here and cuts texts as the server does."""
    where = server.where
    if not names:
        _say(logging.INFO, f"{where} does not name its tokenizer, {_OWN_WAY}")
    elif not cuts:
        _say(logging.INFO, f"{where} names the tokenizer {names[0]}, but cuts no text to check it by: {_OWN_WAY}")
    for name in names if cuts else ():
        try:
            vocabulary = tokenizer_here(name)
        except ModelUnavailable as error:
            _say(logging.INFO, f"{where} names the tokenizer {name}, {_OWN_WAY}: {error}")
            continue
        if vocabulary is None:
            _say(logging.INFO, f"{where} names the tokenizer {name}, which is not on this machine: {_OWN_WAY}")
            continue
        if (text := _cut_otherwise(vocabulary, cuts)) is not None:
            what = f"{where} names the tokenizer {name}, but that of this name here cuts {text[:30]!r}… otherwise"
            _say(logging.WARNING, f"{what}: {_OWN_WAY}")
            continue
        today = datetime.now(UTC).date().isoformat()
        identity = spelling_identity(vocabulary, "raw")
        keep(Kept(url=where, model=server.model, name=name, identity=identity, found_on=today))
        _say(logging.INFO, f"tokenizer of {server.model}: {name}, as {where} names it, and cuts texts as it does")
        return _found(server, vocabulary, name)
    return Found()


def _cut_otherwise(vocabulary: Vocabulary, cuts: Cuts) -> str | None:
    """A text that it cuts otherwise than the server; None where there is none."""
    for text, ids in zip(TEXTS, cuts, strict=True):
        try:
            own = vocabulary.prompt_ids(text)
        except BlackboxError:
            return text
        if own != ids:
            return text
    return None


def _found(server: _Server, vocabulary: Vocabulary, name: str) -> Found:
    return Found(vocabulary, name, forget=lambda: forget(server.where, server.model))


def _as_kept(server: _Server, kept: Kept, spoken: Dialect) -> Found | None:
    """What was found before; None where that is not sure any more. An answer with ids tells at once if the server has
    another model by now; where answers have none, the server is asked how it cuts.
    """
    try:
        vocabulary = tokenizer_here(kept.name)
    except ModelUnavailable:
        vocabulary = None
    if vocabulary is None or spelling_identity(vocabulary, "raw") != kept.identity:
        return None
    how = f"as found on {kept.found_on}"
    if not (spoken.ids_shown or spoken.ids_out):
        try:
            _, _, cuts = apart(_asked(server, spoken.telling))
            if not cuts or _cut_otherwise(vocabulary, cuts) is not None:
                return None
        except ConnectionFailed:
            how += f", since {server.where} cannot be asked"
        except (BaseError, TimeoutError):
            return None
    _say(logging.INFO, f"tokenizer of {server.model}: {kept.name}, {how}")
    return _found(server, vocabulary, kept.name)


def _of_service(server: _Server) -> Found:
    """OpenAI's own models, by name."""
    encoding = encoding_of(server.model)
    if encoding is None:
        return Found()
    vocabulary = encoding_here(encoding)
    if vocabulary is None:
        what = f"tokenizer of {server.model}: {encoding}, whose file is not on this machine"
        _say(logging.INFO, f"{what}: {_OWN_WAY}, and fetches it")
        return Found()
    _say(logging.INFO, f"tokenizer of {server.model}: {encoding}, by tiktoken's table of OpenAI's models")
    return Found(vocabulary, encoding, assumed=True)


def _say(level: int, line: str, *, once: str = "") -> None:
    """Once in a process. once: what that goes by, if not by the line."""
    if (once or line) not in _said:
        _said.add(once or line)
        log.log(level, "%s", line)
