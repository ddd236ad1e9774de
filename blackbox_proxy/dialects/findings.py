"""What a probe found out about an endpoint: kept in a file, and laid over a dialect when a base is opened.

One JSON file for each (URL, model, API), readable by its owner only, without the key and without what may be secret in
the URL. None in a field means that it is not known, and then the dialect's own word stands. probe.py finds it out,
verdict.py says what follows from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from platformdirs import user_data_path

from blackbox_proxy.dialects.table import DIALECTS, PROBED, After, Api, Dialect, Prefill
from blackbox_proxy.errors import InputError

_log = logging.getLogger(__name__)

SCHEMA = 1
VARIABLE = "BLACKBOX_PROXY_PROBES"
"""Environment variable: 0 uses and keeps no findings, anything else but 1 is the folder for them."""

EXACT = 1e-3  # nats: what arithmetic in another order makes in single precision, and then some
_USUAL_BIAS = 300
_IDS_OUT = {"return_tokens_as_token_ids": True}

Bytes = Literal["true", "of the text", "null", "absent", "whole"]
Parts = Literal["escaped", "replaced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What an endpoint was seen to do. Differences (`…_drift`) are the largest of a log probability, in nats."""

    # Which endpoint.
    url: str  # without user, password and query
    model: str
    api: Api
    dialect: str  # the one that it was asked in
    asked_at: str = ""  # ISO
    apis: Mapping[str, str] = field(default_factory=dict)  # API -> "log probabilities", "text only", or why nothing
    owner: str | None = None  # what it writes as `owned_by`
    claims: str | None = None  # the dialect that this names
    recognised: bool = True  # that, the URL or the caller did name a dialect
    listed: bool | None = None  # the model is in its list
    window: int | None = None  # tokens
    tokenizer: str | None = None  # that it was held to: the one given, or found and held to how the server cuts texts

    # How many candidates.
    k: int | None = None  # the most `top_logprobs`; 0 where it shows none
    # It "named" that limit, shows no more whatever is asked ("silent"), took it after refusing more ("tried"), or took
    # all that was asked ("open").
    k_how: Literal["named", "silent", "tried", "open"] | None = None
    # A token written beyond the k is "listed" besides them, "missing", or "cut" the k short.
    outside: Literal["listed", "missing", "cut"] | None = None
    chat_length: str | None = None  # as in `Dialect`, where the server corrected it
    omit: tuple[str, ...] = ()  # the same

    # How tokens are written.
    ids: Literal["shown", "on request", "no"] | None = None  # of candidates; "shown": unasked
    # "plain" where strings spell the text, the name of a script that is undone, or "refused"
    strings: str | None = None
    bytes: Bytes | None = None  # as in `answers.Spelling`
    parts: Parts | None = None  # the same
    wrong: int | None = None  # the same
    joined: bool | None = None  # some rows stood for several tokens, of which only the last is told
    overwritten: bool | None = None  # candidates that are written alike took each other's place
    sentinels: tuple[float, ...] = ()  # numbers that stood for no log probability

    # Whether it goes on from what was issued.
    ids_in: bool | None = None  # prompts of token ids are taken
    ids_drift: float | None = None  # between a draft and its own continuation from a prefix of ids
    text_drift: float | None = None  # from a prefix of text
    prefill: Mapping[str, Any] | None = None  # fields of body and message with which chat continues; {}: none made it
    prefill_drift: float | None = None  # from a begun chat message
    keeps_space: bool | None = None  # of a message that ends in white space
    repeats: bool | None = None  # the text of the answer begins with what was continued

    # Given text and streams.
    # Log probabilities of a prompt come back ("scored"), only its "text", nothing ("ignored"), or it is "refused".
    echo: Literal["scored", "text", "ignored", "refused"] | None = None
    echo_drift: float | None = None  # between a draft and the same text given
    echo_last: bool | None = None  # only the last so many tokens come back where that is asked
    echo_streams: bool | None = None
    prompt_logprobs: bool | None = None  # that field is honoured
    streams: Literal["log probabilities", "text", "whole"] | None = None  # "whole": the answer comes in one piece
    stream_options: bool | None = None  # they are taken

    # What bends the choice, and what the numbers have been through.
    bias: Literal["honoured", "ignored", "refused"] | None = None
    reflected: bool | None = None  # a bias is seen in the numbers shown
    bias_keys: int = 0  # as many were taken
    named: str | None = None  # the field that names tokens to show; "" where none did
    after: Literal["nothing", "temperature"] | None = None  # what the numbers have been through
    greedy: bool | None = None  # at temperature 0 it writes the likeliest it shows
    repeated: int = 0  # how often the same was asked
    same_text: bool | None = None  # whether the text was the same then
    drift: float | None = None  # and the numbers
    end: str | None = None  # how the end of text shows

    # What it took.
    limits: Mapping[str, str] = field(default_factory=dict)  # headers about rate limits
    refused: Mapping[str, str] = field(default_factory=dict)  # question -> why it has no answer
    calls: int = 0  # requests that the probe made
    prompt_tokens: int = 0  # as the API counted them
    completion_tokens: int = 0

    def onto(self, dialect: Dialect) -> Dialect:
        """The dialect with what was found in place of what it says."""
        changes = self._about_requests(dialect) | self._about_answers(dialect)
        return replace(dialect, **changes, evidence=f"{PROBED}{self.asked_at[:10]}")

    def _about_requests(self, dialect: Dialect) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.chat_length is not None:
            changes["chat_length"] = self.chat_length
        if self.omit:
            changes["omit"] = tuple(dict.fromkeys((*dialect.omit, *self.omit)))
        if self.ids_in is not None:
            changes["prefix"] = "ids" if self.ids_in and not far(self.ids_drift) else "text"
        if self.api == "chat" and self.prefill is not None:
            changes["prefill"] = self._prefill(dialect)
        if self.ids is not None and dialect.native is None:
            changes |= {"ids_out": _IDS_OUT if self.ids == "on request" else {}, "ids_shown": self.ids == "shown"}
        if self.stream_options is False:
            changes["usage_stream"] = {}
        if self.named is not None:
            changes["named"] = self.named or None
        if self.bias is not None:
            changes["bias_keys"] = self.bias_keys if self.bias == "honoured" else 0
        return changes

    def _prefill(self, dialect: Dialect) -> Prefill | None:
        if not self.prefill:
            return None
        keeps = self.keeps_space if self.keeps_space is not None else False
        return Prefill(self.prefill.get("body", {}), self.prefill.get("message", {}), keeps)

    def _about_answers(self, dialect: Dialect) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.k:
            limit = None if self.k_how == "open" else self.k
            changes["completions_k" if self.api == "completions" else "chat_k"] = limit
            changes["apis"] = dialect.apis if self.api in dialect.apis else (*dialect.apis, self.api)
        if self.echo is not None:
            scored = self.echo == "scored"
            changes["echo"] = {"echo": True} if scored else None
            if not scored or self.echo_last is not None:
                changes["echo_last"] = "echo_last" if scored and self.echo_last else None
            if not scored or self.echo_streams is not None:
                changes["echo_streams"] = scored and self.echo_streams
        if self.streams is not None:
            changes["streams"] = self.streams == "log probabilities"
        if self.joined:
            changes["hides_parts"] = True
        if self.api == "chat" and self.outside is not None:
            changes["chat_counts_own"] = self.outside == "cut"
        if self.greedy is False or self.joined or not self.recognised:
            changes["draws"] = False  # the last: what is switched on by default there is not known
        if (after := self.shown_after) is not None:
            changes["shown_after"] = after
        return changes

    @property
    def shown_after(self) -> After | None:
        """What the log probabilities have been through, as `Dialect` says it."""
        if self.after == "temperature":
            return "temperature"
        if self.after is None or self.reflected is None:
            return self.after
        return "bias" if self.reflected else "nothing"


def far(drift: float | None) -> bool:
    """Whether a continuation was another text's; False where it could not be compared."""
    return drift is not None and drift > 0.3


def base_dialect(findings: Findings) -> Dialect:
    """What the findings are laid over. Raises InputError for a dialect of a later version."""
    if findings.dialect not in DIALECTS:
        raise InputError(f"the findings are about an unknown dialect {findings.dialect!r}", hint="Probe again.")
    return DIALECTS[findings.dialect]


# -- the files --------------------------------------------------------------------------------------------------------


def folder() -> Path | None:
    """Where findings are kept; None where that is turned off."""
    said = os.environ.get(VARIABLE, "")
    if said == "0":
        return None
    return Path(said) if said not in ("", "1") else user_data_path("blackbox-proxy") / "probes"


def file_of(url: str, model: str, api: Api | Literal["tokenizer"]) -> str:
    """The name of the file about an API of an endpoint, or about its tokenizer. `url` without what may be secret."""
    host = urlsplit(url).netloc
    digest = hashlib.sha256("\n".join((url.rstrip("/"), model, api)).encode()).hexdigest()[:12]
    return f"{_plain(host)}-{_plain(model)}-{api}-{digest}.json"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:40] or "_"


def save(findings: Findings, path: Path | None = None) -> Path | None:
    """Write them to their place, or to `path`, for this user only. None where nothing is kept. Raises InputError."""
    home = folder()
    if path is None and home is None:
        return None
    target = path or (home or Path()) / file_of(findings.url, findings.model, findings.api)
    write(target, {"schema": SCHEMA, **asdict(findings)})
    return target


def write(target: Path, said: Mapping[str, Any]) -> None:
    """Write JSON in one step, for this user only. Raises InputError."""
    text = json.dumps(said, indent=2, ensure_ascii=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".probe-")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as written:
            written.write(text + "\n")
        os.replace(name, target)
    except OSError as error:
        raise InputError(f"the findings cannot be written to {target}: {error.strerror}") from error


def load(path: str | os.PathLike[str]) -> Findings:
    """Read a file. Raises InputError for what is none, or of another version."""
    try:
        read = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"no findings at {os.fspath(path)}: {error.strerror}", hint="Probe the endpoint.") from error
    except ValueError as error:
        raise InputError(f"{os.fspath(path)} is no file of findings", hint="Probe the endpoint again.") from error
    known = {part.name for part in fields(Findings)}
    if not isinstance(read, dict) or read.pop("schema", None) != SCHEMA or not {"url", "model", "api"} <= read.keys():
        raise InputError(
            f"{os.fspath(path)} was written by another version of this library", hint="Probe the endpoint again."
        )
    for name in ("omit", "sentinels"):
        read[name] = tuple(read.get(name) or ())
    return Findings(**{name: value for name, value in read.items() if name in known})


def saved(url: str, model: str, api: Api) -> Findings | None:
    """What was found at an endpoint before; None where it was not probed. A file that cannot be read is a warning."""
    home = folder()
    if home is None:
        return None
    path = home / file_of(url, model, api)
    if not path.is_file():
        return None
    try:
        found = load(path)
        base_dialect(found)
    except InputError as error:
        _log.warning("findings are not used: %s", error)
        return None
    return found
