"""The JSON of a request -> `Order`: what is wanted, checked, or the error that OpenAI's API gives.

Unknown fields are ignored, as vLLM does. Known fields that would change the text or the numbers and that these routes
do not implement are refused unless they have a neutral value: a black box that ignores `top_k` would lie.

Beyond OpenAI's fields, vLLM's are understood: `return_tokens_as_token_ids`, `return_token_ids`, `add_special_tokens`,
`continue_final_message`, `add_generation_prompt`, `stream_options.continuous_usage_stats`, and `logprob_token_ids`: the
log probabilities of up to 128 named ids are shown in place of the most likely tokens'. In completions also Fireworks'
`echo_last`: the last N tokens of the prompt come back, with or without `echo`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.serve.engine import Ending, TextWanted
from blackbox_proxy.serve.wire import Style

_MOST_CHOICES = 128
_MOST_OF = {"stop": 4, "logit_bias": 300, "logprob_token_ids": 128, "messages": 4096}  # OpenAI's, vLLM's, ours
_MOST_PARTS = 4096  # of the content of a message
_MOST_STOP_CHARACTERS = 1024
_MOST_DIGITS = 9  # of a token id
_MOST_SEED = 2**63 - 1
_MOST_BRACKETS = 1_000_000
_SHOWN = 100  # characters of what was sent that go into an error
_MOST_TEMPERATURE = 2.0


class _First(FailFast):
    """One error of a list is enough, of a million. (Unions want a hash.)"""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


_Of = TypeVar("_Of")
_List = Annotated[list[_Of], _First()]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "structured_outputs": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
}


_HARMLESS = (  # OpenAI's fields that change neither text nor numbers here
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
)
_NEUTRAL_BESIDES: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "parallel_tool_calls": (True, False),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _StreamOptions(_Read):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Common(_Read):
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    logprob_token_ids: list[int] | None = None


class CompletionRequest(_Common):
    """`POST /v1/completions`."""

    prompt: str | _List[str] | _List[int] | _List[_List[int]]
    logprobs: int | None = None
    echo: bool | None = None
    echo_last: int | None = None


_Request = TypeVar("_Request", bound=_Common)


class _Part(_Read):
    type: Literal["text"]
    text: str


class _Message(_Read):
    role: str
    content: str | _List[_Part] | None = None


class ChatRequest(_Common):
    """`POST /v1/chat/completions`."""

    messages: _List[_Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    echo: Literal[False] | None = None
    echo_last: Literal[0] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A checked request: `texts` in the order of the choices, `n` of them for each prompt.

    include_usage: a stream ends with its usage. continuous_usage: each of its chunks has the usage so far, too. begun:
    what the text repeats before it goes on. start: the place in the prompt from which on it is scored.
    """

    texts: tuple[TextWanted, ...]
    n: int
    style: Style
    stream: bool
    include_usage: bool
    continuous_usage: bool
    begun: str = ""
    start: int = 0


def parse(raw: bytes) -> Any:
    """The JSON of a body. Raises ApiError for what is no JSON, or holds text that is none."""
    if raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS:  # each may be an object, of a hundred times its size
        raise ApiError(f"The body has more than {_MOST_BRACKETS} brackets.", status=413, code="request_too_large")
    try:
        body = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode("utf-8")  # JSON can carry half a character, no tokenizer can
    except (ValueError, RecursionError) as error:
        raise ApiError(f"We could not parse the JSON body of your request: {_short(str(error))}.") from error
    return body


def _check_lengths(body: Mapping[str, Any]) -> None:
    """Refuse lists longer than any that is read, before each part of them is looked at."""
    for name, most in _MOST_OF.items():
        _at_most(most, body.get(name), name)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping):
            _at_most(_MOST_PARTS, message.get("content"), "messages")


def _at_most(most: int, given: Any, name: str) -> None:
    if isinstance(given, list | dict) and len(given) > most:
        raise ApiError(
            f"Invalid '{name}': array too long. Expected at most {most}, but got {len(given)} instead.",
            param=name,
            code="array_above_max_length",
        )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def read_completion(body: Any, model: str, limit: int, max_prompts: int = 1) -> Order:
    """A request for completions. `model` is the only one served, `limit` the most logprobs. Raises ApiError."""
    prompts = body.get("prompt") if isinstance(body, Mapping) else None
    if isinstance(prompts, list) and not isinstance(next(iter(prompts), None), int | float):
        _at_most(max_prompts, prompts, "prompt")
    request = _read(CompletionRequest, body, model)
    max_tokens = 16 if request.max_tokens is None else request.max_tokens
    echo = bool(request.echo)
    if request.echo_last is not None:
        _within("echo_last", request.echo_last, 0, None)
        echo = request.echo_last > 0
    _within("max_tokens", max_tokens, 0 if echo else 1, None)
    if request.logprobs is not None:
        _within("logprobs", request.logprobs, 0, limit)
    texts = [
        TextWanted(prompt, max_tokens, top_logprobs=request.logprobs, echo=echo, echo_last=request.echo_last)
        for prompt in _prompts(request.prompt)
    ]
    return _order(request, texts, chat=False, logprobs=request.logprobs is not None)


def read_chat(body: Any, model: str, limit: int) -> Order:
    """A request for a chat completion. `model` and `limit` as above. Raises ApiError."""
    request = _read(ChatRequest, body, model)
    max_tokens, name = request.max_tokens, "max_tokens"
    if request.max_completion_tokens is not None:
        max_tokens, name = request.max_completion_tokens, "max_completion_tokens"
    if max_tokens is not None:
        _within(name, max_tokens, 1, None)
    k, logprobs = request.top_logprobs or 0, bool(request.logprobs)
    _within("top_logprobs", k, 0, limit)
    if k and not logprobs:
        raise ApiError("'logprobs' must be true if 'top_logprobs' is used.", param="top_logprobs")
    if not request.messages:
        raise ApiError("Invalid 'messages': empty array.", param="messages", code="empty_array")
    messages = tuple({"role": m.role, "content": _content(m.content)} for m in request.messages)
    wanted = TextWanted(messages, max_tokens, top_logprobs=k if logprobs else None, ending=_ending(request))
    return _order(request, [wanted], chat=True, logprobs=logprobs)


def refuse_unknown(body: Any, own: Collection[str], *, chat: bool) -> None:
    """Raise ApiError, by name, for a field that these routes do not know and the engine does not read itself."""
    if not isinstance(body, Mapping):
        return
    kind = ChatRequest if chat else CompletionRequest
    for name, value in body.items():
        if value is None or name in kind.model_fields or name in own or name in _HARMLESS or name in _NEUTRAL:
            continue
        if value not in _NEUTRAL_BESIDES.get(name, ()):
            known = name in _NEUTRAL_BESIDES
            message = f"Unsupported parameter: '{name}'." if known else f"Unrecognized request argument: '{name}'."
            raise ApiError(message, param=name, code="unsupported_parameter" if known else "unknown_parameter")


def own_fields(order: Order, body: Any, own: Collection[str]) -> Order:
    """The order with those fields of the body that the engine reads itself."""
    found = {name: body[name] for name in own if isinstance(body, Mapping) and body.get(name) is not None}
    return replace(order, texts=tuple(replace(text, own=found) for text in order.texts)) if found else order


def _read(kind: type[_Request], body: Any, model: str) -> _Request:
    if not isinstance(body, Mapping):
        raise ApiError("The body of the request must be a JSON object.")
    for field, neutral in _NEUTRAL.items():
        value = body.get(field)
        if value is not None and value not in neutral:
            raise ApiError(f"Unsupported parameter: '{field}'.", param=field, code="unsupported_parameter")
    _check_lengths(body)
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from error
    if request.model != model:
        raise ApiError(
            f"The model `{_short(request.model)}` does not exist or you do not have access to it.",
            status=404,
            code="model_not_found",
        )
    return request


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name, *inner = first["loc"]
    inside = {*_Message.model_fields, *_Part.model_fields, *_StreamOptions.model_fields}
    path = str(name) + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in inner  # the rest names the alternatives of a union
        if isinstance(part, int) or part in inside
    )
    if first["type"] == "missing":
        return ApiError(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
    return ApiError(f"Invalid type for '{path}': {first['msg']}.", param=path, code="invalid_type")


def _within(name: str, value: float, low: float, high: float | None) -> None:
    kind = "integer" if isinstance(value, int) else "decimal"
    beyond = ""
    if not value >= low:
        beyond, expected = "below minimum", f">= {low}"
    elif high is not None and value > high:
        beyond, expected = "above maximum", f"<= {high}"
    if beyond:
        raise ApiError(
            f"Invalid '{name}': {kind} {beyond} value. Expected a value {expected}, but got {value} instead.",
            param=name,
            code=f"{kind}_{beyond.replace('imum', '').replace(' ', '_')}_value",
        )


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | tuple[int, ...]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError("Invalid 'prompt': empty array.", param="prompt", code="empty_array")
    ids = tuple(item for item in prompt if isinstance(item, int))
    if ids:
        return [ids]
    return [item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int)]


def _content(content: str | list[_Part] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or [])


def _ending(request: ChatRequest) -> Ending:
    reply = request.add_generation_prompt
    if not request.continue_final_message:
        return "none" if reply is False else "reply"
    if reply is not False:
        raise ApiError(
            "'continue_final_message' needs 'add_generation_prompt' to be false.", param="add_generation_prompt"
        )
    if request.messages[-1].role != "assistant":
        raise ApiError("'continue_final_message' needs a last message of the assistant.", param="messages")
    return "continue"


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MOST_DIGITS):
            raise ApiError(f"Invalid key in 'logit_bias': {_short(key)}. Keys are token ids.", param="logit_bias")
        _within("logit_bias", value, -100, 100)
    return {int(key): value for key, value in given.items()}


def _order(request: _Common, texts: list[TextWanted], *, chat: bool, logprobs: bool) -> Order:
    n = 1 if request.n is None else request.n
    _within("n", n, 1, _MOST_CHOICES)
    _within("seed", request.seed or 0, -_MOST_SEED, _MOST_SEED - n)
    temperature, top_p = _sampling(request)
    stop, bias = _stops(request.stop), _bias(request.logit_bias or {})
    shown_ids = tuple(request.logprob_token_ids or ())
    if shown_ids and not logprobs:
        raise ApiError("'logprob_token_ids' needs 'logprobs'.", param="logprob_token_ids")
    wanted = tuple(
        replace(
            text,
            temperature=temperature,
            top_p=top_p,
            seed=None if request.seed is None else request.seed + choice,
            stop=stop,
            add_special_tokens=request.add_special_tokens,
            bias=bias,
            shown_ids=shown_ids,
        )
        for text in texts
        for choice in range(n)
    )
    style = Style(
        chat,
        logprobs,
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        token_ids=bool(request.return_token_ids),
        echo=any(text.echo for text in wanted),
    )
    options = request.stream_options or _StreamOptions()
    include_usage = bool(options.include_usage)
    continuous = include_usage and bool(options.continuous_usage_stats)  # as vLLM: the one only with the other
    return Order(wanted, n, style, bool(request.stream), include_usage, continuous)


def _sampling(request: _Common) -> tuple[float, float]:
    """Temperature and top_p."""
    temperature = 1.0 if request.temperature is None else float(request.temperature)
    top_p = 1.0 if request.top_p is None else float(request.top_p)
    _within("temperature", temperature, 0.0, _MOST_TEMPERATURE)
    _within("top_p", top_p, 0.0, 1.0)
    return (0.0, 1.0) if top_p == 0.0 else (temperature, top_p)  # a nucleus of one token is greedy


def _stops(sent: str | list[str] | None) -> tuple[str, ...]:
    stop = [sent] if isinstance(sent, str) else sent or []
    if any(len(text) > _MOST_STOP_CHARACTERS for text in stop):
        raise ApiError(
            f"Invalid 'stop': string too long. Expected at most {_MOST_STOP_CHARACTERS} characters.",
            param="stop",
            code="string_above_max_length",
        )
    return tuple(text for text in stop if text)
