"""SGLang's own `/generate`, spoken as if it were OpenAI's completions: pure functions, no I/O.

`native_request` makes its body from the arguments of a completion, `native_answer` a completion from what it answers,
in the shape that has the candidates' ids, so that everything before and behind is the one code path. It gives what
SGLang's OpenAI routes lack: ids of all candidates, log probabilities of the prompt, and those of named tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from blackbox_proxy.api.entries import as_list, malformed
from blackbox_proxy.transport.connection import Route

_SAMPLING = ("top_k", "min_p", "repetition_penalty", "logit_bias", "ignore_eos", "regex", "json_schema", "ebnf")


def own_route(base_url: str, route: str | None) -> Route | None:
    """A route of the server's own that is asked in place of OpenAI's."""
    return None if route is None else Route(below(base_url, route), native_request)


def below(base_url: str, route: str) -> str:
    """A route below the root of a server whose OpenAI routes lie below `base_url`, usually …/v1."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/").removesuffix("/v1") + route
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def native_request(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/generate`. `echo`, `echo_last` and `token_ids_logprob` are read from `extra_body`.

    Echoed are the last `echo_last` tokens of a prompt of ids, all of the prompt else.
    """
    extra = dict(arguments.get("extra_body") or {})
    prompt = arguments["prompt"]
    echo, last = extra.pop("echo", False), extra.pop("echo_last", None)
    sampling = {
        "temperature": arguments["temperature"],
        "top_p": arguments["top_p"],
        "max_new_tokens": arguments["max_tokens"],
        **{name: extra.pop(name) for name in _SAMPLING if name in extra},
    }
    if "seed" in arguments:
        sampling["sampling_seed"] = arguments["seed"]
    start = -1
    if echo:
        # The first token from where it starts has no log probability: that place is before the first one wanted.
        start = max(0, len(prompt) - last - 1) if last is not None and isinstance(prompt, list) else 0
    return {
        "text" if isinstance(prompt, str) else "input_ids": prompt,
        "sampling_params": sampling,
        "return_logprob": True,
        "top_logprobs_num": arguments.get("logprobs", 0),
        "logprob_start_len": start,
        "return_text_in_logprobs": True,
        **extra,
    }


def native_answer(body: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A completion in the shape of `choices[].logprobs.content`, from the answer to `arguments`.

    With an echo it begins with the tokens of the prompt. The log probabilities of named tokens take the place of the
    most likely ones', as vLLM shows them. Raises BadResponse.
    """
    answer = body[0] if isinstance(body, list) and body else body
    meta = answer.get("meta_info") if isinstance(answer, Mapping) else None
    if not isinstance(answer, Mapping) or not isinstance(meta, Mapping):
        raise malformed("there is no meta_info")
    extra = arguments.get("extra_body") or {}
    rows: list[dict[str, Any]] = []
    if extra.get("echo"):
        rows = _rows(meta, "input", "top_logprobs")
        last = extra.get("echo_last")
        if last is not None and isinstance(arguments["prompt"], list) and len(arguments["prompt"]) > last:
            rows = rows[1:]
    named = bool(extra.get("token_ids_logprob"))
    rows += _rows(meta, "output", "token_ids_logprobs" if named else "top_logprobs")
    return {
        "choices": [
            {
                "index": 0,
                "text": answer.get("text", ""),
                "logprobs": {"content": rows},
                "finish_reason": meta.get("finish_reason"),
            }
        ],
        "usage": {
            "prompt_tokens": meta.get("prompt_tokens"),
            "completion_tokens": meta.get("completion_tokens"),
            "prompt_tokens_details": {"cached_tokens": meta.get("cached_tokens")},
        },
    }


def _rows(meta: Mapping[str, Any], side: str, candidates: str) -> list[dict[str, Any]]:
    tokens = meta.get(f"{side}_token_logprobs") or []
    tops = meta.get(f"{side}_{candidates}") or [None] * len(tokens)
    if len(as_list(tokens)) != len(as_list(tops)):
        raise malformed(f"{len(tokens)} tokens with {len(tops)} rows of candidates")
    return [
        {**_entry(token), "top_logprobs": [_entry(other) for other in top or ()]}
        for token, top in zip(tokens, tops, strict=True)
    ]


def _entry(item: object) -> dict[str, Any]:
    """A token from SGLang's triple: log probability, id, text (null where it was not asked for)."""
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) < 2:
        raise malformed("a token is not a log probability and an id")
    text = item[2] if len(item) > 2 else None
    return {"logprob": item[0], "id": item[1], "token": text if isinstance(text, str) else f"token_id:{item[1]}"}
