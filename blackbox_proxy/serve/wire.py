"""What goes over the wire: OpenAI's response JSON, its stream chunks and its error bodies. Pure functions.

Two ways, as real servers have them (an `Emulation` says where another server writes otherwise):

- **OpenAI**. Tokens are strings: the text of a token; `bytes:\\xe2\\x80` where it is no whole UTF-8 (in chat without
  the `bytes:`, and the true bytes stand beside it); special tokens as they are written, e.g. `<|endoftext|>`, and in
  chat the bytes of that. Of several candidates spelled alike a dict of completions keeps the most likely, like the
  real one. The end token is a candidate like any other, but the one that ended the text has no entry. (It has one where
  the prompt is repeated: who takes what was generated off the end of the columns takes one token for each.)
- **vLLM**, when `return_tokens_as_token_ids` or `return_token_ids` is sent. The end token that was generated has its
  entry and its id. `return_tokens_as_token_ids`: every token is "token_id:17", so no two candidates collide; `bytes`
  in chat stay the true bytes. `return_token_ids`: `token_ids` of what was generated in each choice, `prompt_token_ids`
  beside them (in chat at the top of the response, where vLLM has it).

In both, `top_logprobs` of completions holds the k candidates and the token itself (k + 1 entries if it is none of
them); in chat it holds the k candidates, and the token's log probability is that of the entry. Tokens of a stop string
have no entry. `completion_tokens` counts every token the model wrote, the end and those of a stop string included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.errors import BlackboxError, ContextTooLong, InputError
from blackbox_proxy.serve.emulation import BENDS, Emulation
from blackbox_proxy.serve.engine import Placed
from blackbox_proxy.text.vocabulary import VocabularyTokens
from blackbox_proxy.types import FinishReason, Position, Token, Usage

Json = dict[str, Any]

_VANISHED = -100.0  # nats; the exponential of less than -104 is 0 in single precision


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is written down: which API, with log probabilities or not, and vLLM's two extensions."""

    chat: bool
    logprobs: bool
    tokens_as_ids: bool = False
    token_ids: bool = False
    echo: bool = False  # the prompt is part of the answer
    emulation: Emulation = field(default_factory=Emulation)

    @property
    def shows_end(self) -> bool:
        end = self.emulation.end
        return self.tokens_as_ids or self.token_ids or self.echo if end == "asked" else end != "omitted"


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one response begin with."""

    id: str
    created: int
    model: str


# -- tokens -------------------------------------------------------------------------------------------------------


def spell(token: Token, style: Style, *, listed: bool = False) -> str:
    """A token as a string; listed: as a candidate."""
    if style.tokens_as_ids and token.id is not None:
        return f"token_id:{token.id}"
    emulation = style.emulation
    if emulation.bend and token.bytes and emulation.bends in ("all", "listed" if listed else "own"):
        return BENDS[emulation.bend](token.bytes.decode("utf-8", "replace"), token.bytes)
    try:
        return token.bytes.decode("utf-8") if token.bytes else token.text if style.emulation.special else ""
    except UnicodeDecodeError:
        if style.emulation.partial == "replaced":
            return (token.bytes or b"").decode("utf-8", "replace")
        escaped = "".join(f"\\x{byte:02x}" for byte in token.bytes or b"")
        return escaped if style.chat else f"bytes:{escaped}"


def _spell_all(tokens: Sequence[Token], style: Style) -> list[str]:
    if style.tokens_as_ids and isinstance(tokens, VocabularyTokens):
        return [f"token_id:{index}" for index in tokens.ids.tolist()]
    return [spell(token, style, listed=True) for token in tokens]


def lowered(logprob: float, style: Style) -> float:
    """A log probability as it is written: JSON has no infinity, and some servers no numbers close to it."""
    return logprob if logprob > _VANISHED else style.emulation.lowest


def _object(token: Token, written: str, logprob: float | None, style: Style) -> Json:
    """A token of the chat shape."""
    emulation = style.emulation
    result: Json = {"token": written, "logprob": None if logprob is None else lowered(logprob, style)}
    if emulation.bytes == "text":
        result["bytes"] = list(written.encode("utf-8"))
    elif emulation.bytes != "absent":
        known = token.bytes or (token.text.encode("utf-8") if emulation.special else b"")
        result["bytes"] = None if token.bytes is None or emulation.bytes == "null" else list(known)
    if emulation.ids is not None:
        result[emulation.ids] = token.id
    return result


def listed(entries: Sequence[Placed], style: Style) -> list[Placed]:
    """The entries that this dialect lists: not the end that was generated, unless it is vLLM's."""
    if style.shows_end:
        return list(entries)
    return [entry for entry in entries if not (entry.generated and entry.position.token.end)]


def completion_logprobs(entries: Sequence[Placed], style: Style) -> Json:
    """The `logprobs` object of completions: four columns with a row for each token."""
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        position = entry.position
        if position.logprob is None:
            tops.append(None)  # the first token of an echo: nothing comes before it
            continue
        row: dict[str, float] = {}
        for key, logprob in zip(_spell_all(position.tokens, style), position.logprobs.tolist(), strict=True):
            if style.emulation.last_wins or key not in row:
                row[key] = lowered(logprob, style)
        if style.emulation.outside_listed:
            row.setdefault(spell(position.token, style, listed=True), lowered(position.logprob, style))
        tops.append(row)
    return {
        "tokens": [spell(entry.position.token, style) for entry in entries],
        "token_logprobs": [entry.position.logprob for entry in entries],
        "top_logprobs": tops,
        "text_offset": [entry.offset for entry in entries],
    }


def chat_logprobs(entries: Sequence[Placed], style: Style) -> Json:
    """The `logprobs` object of chat: an entry for each token."""
    return {"content": [_chat_entry(entry.position, style) for entry in entries], "refusal": None}


def _chat_entry(position: Position, style: Style) -> Json:
    token, logprob = position.token, position.logprob
    spelled = spell(token, style)
    listed = [*zip(position.tokens, _spell_all(position.tokens, style), position.logprobs.tolist(), strict=True)]
    if token not in position.tokens:
        if style.emulation.chat_counts_own and listed:
            listed = [(token, spelled, logprob), *listed[:-1]]
        if style.emulation.outside is not None:
            logprob = style.emulation.outside
    candidates = [_object(*candidate, style) for candidate in listed]
    return {**_object(token, spelled, logprob, style), "top_logprobs": candidates}


# -- responses ----------------------------------------------------------------------------------------------------


def choice(
    index: int,
    text: str,
    entries: Sequence[Placed],
    finish: FinishReason | None,
    style: Style,
    prompt_ids: Sequence[int] | None = None,
) -> Json:
    """One choice of a whole response, or of a chunk of a stream of completions."""
    result: Json = {"index": index, "finish_reason": finish, "logprobs": _logprobs(entries, style)}
    if style.chat:
        result["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        result["text"] = text
    return result | _ids(entries, style, None if style.chat else prompt_ids)


def delta(
    index: int, text: str | None, entries: Sequence[Placed], finish: FinishReason | None, style: Style, first: bool
) -> Json:
    """One choice of a chunk of a chat stream. The first has the role, the last the finish reason and nothing else."""
    written: Json = {"role": "assistant", "content": "", "refusal": None} if first else {}
    if text is not None:
        written["content"] = text
    logprobs = _logprobs(entries, style) if text is not None else None
    result: Json = {"index": index, "delta": written, "logprobs": logprobs, "finish_reason": finish}
    return result | (_ids(entries, style, None) if text is not None else {})


def _logprobs(entries: Sequence[Placed], style: Style) -> Json | None:
    if not style.logprobs:
        return None
    found = listed(entries, style)
    columns = style.emulation.chat_columns if style.chat else style.emulation.columns
    result = completion_logprobs(found, style) if columns else chat_logprobs(found, style)
    told = [entry.about for entry in found]
    return result | {"steps": told} if any(told) else result  # an extension: what the engine tells of each token


def _ids(entries: Sequence[Placed], style: Style, prompt_ids: Sequence[int] | None) -> Json:
    if not style.token_ids:
        return {}
    result: Json = {"token_ids": [entry.position.token.id for entry in entries if entry.generated]}
    if prompt_ids is not None:
        result["prompt_token_ids"] = list(prompt_ids)
    return result


def response(
    head: Head,
    choices: Sequence[Json],
    usage: Usage,
    style: Style,
    prompt_ids: Sequence[int] | None = None,
    upstream: Usage | None = None,
) -> Json:
    """A whole response."""
    result = _around(head, choices, "chat.completion" if style.chat else "text_completion")
    result["usage"] = usage_json(usage, upstream)
    return result | _prompt_on_top(style, prompt_ids)


def chunk(
    head: Head,
    choices: Sequence[Json],
    style: Style,
    *,
    prompt_ids: Sequence[int] | None = None,
    usage: Usage | None = None,
    include_usage: bool = False,
    upstream: Usage | None = None,
) -> Json:
    """One event of a stream. With `include_usage` all have a `usage`, null where none is given: everywhere but after
    the last choice, unless the client asked for it continuously.
    """
    result = _around(head, choices, "chat.completion.chunk" if style.chat else "text_completion")
    if include_usage:
        result["usage"] = None if usage is None else usage_json(usage, upstream)
    return result | _prompt_on_top(style, prompt_ids)


def _around(head: Head, choices: Sequence[Json], kind: str) -> Json:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": None,
        "choices": list(choices),
    }


def _prompt_on_top(style: Style, prompt_ids: Sequence[int] | None) -> Json:
    if not (style.chat and style.token_ids) or prompt_ids is None:
        return {}
    return {"prompt_token_ids": list(prompt_ids)}


def usage_json(usage: Usage, upstream: Usage | None = None) -> Json:
    """`upstream` is an extension: what another API billed for this."""
    result: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return result if upstream is None else result | {"upstream": asdict(upstream)}


def model_json(name: str, created: int, context: int | None, owner: str) -> Json:
    """An entry of the list of models; `max_model_len` is vLLM's word for the window."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "max_model_len": context}


# -- errors -------------------------------------------------------------------------------------------------------


def api_error(error: BaseException, context: int | None = None) -> ApiError:
    """Any error as an answer. What is not one of ours says nothing about itself to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextTooLong):
        limit = "" if context is None else f"This model's maximum context length is {context} tokens. "
        return ApiError(f"{limit}{_sentence(error)}", code="context_length_exceeded")
    if isinstance(error, InputError):
        return ApiError(_sentence(error))
    if isinstance(error, BlackboxError):
        return ApiError(_sentence(error), status=503 if error.retryable else 500, kind="server_error")
    return ApiError("The server had an error while processing your request.", status=500, kind="server_error")


def _sentence(error: BlackboxError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}. {error.hint}".strip()
