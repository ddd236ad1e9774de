"""What differs between "OpenAI-compatible" servers, as data.

Nothing in here runs: payload.py and parse.py read these fields, and a further server is a further entry of `DIALECTS`.
What a server *answers* needs no field where the answer itself tells (both log-probability shapes, ids printed as
"token_id:17", the end of the text): parse.py recognises those from any server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Api = Literal["completions", "chat"]

_USUAL_K = 20


@dataclass(frozen=True, slots=True)
class Prefill:
    """How a chat API is made to continue its own trailing message: fields of the body, fields of that message.

    `keeps_space`: trailing white space of the message survives. Most chat templates strip it, and only the template
    knows; so it counts as lost unless it was established for the model at hand.
    """

    body: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    keeps_space: bool = False


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server.

    `completions_k`, `chat_k`: the most `top_logprobs` that API gives; None where the server sets no fixed limit.
    `prefix`: how a completions prefix travels where the tokenizer is known; without a tokenizer it is always text.
    `prefill`: how a chat continues; None where it cannot, so that only single tokens can be decoded through it.
    `ids_out`: fields that make tokens come out as ids. Sent only where the tokenizer is known: an id alone would hide
    what the token is, and then its text is worth more.
    `chat_length`: what the chat API calls the number of tokens to generate.
    `extra_body`: sent with every request, below the caller's own `extra_body`.
    `streams`: log probabilities stream. `usage_stream`: the `stream_options` to send with a stream.
    `echo`: fields that make the completions API repeat its prompt with the candidates at every token of it; None where
    it cannot. `echo_last`: the field that limits this to the last so many tokens. `echo_streams`: it does so in a
    stream, too.
    `draws`: what is drawn at temperature 1, top_p 1 comes from the very probabilities that are shown.
    `named`: the field of the body that holds ids whose log probabilities shall be shown (at most `named_limit` of
    them); None where there is none. `bias_keys`: how many tokens a `logit_bias` may name; 0 where it is not honoured.
    """

    name: str
    completions_k: int | None
    chat_k: int | None
    prefix: Literal["ids", "text"] = "text"
    prefill: Prefill | None = None
    ids_out: Mapping[str, Any] = field(default_factory=dict)
    chat_length: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    streams: bool = True
    usage_stream: Mapping[str, Any] = field(default_factory=lambda: {"include_usage": True})
    echo: Mapping[str, Any] | None = None
    echo_last: str | None = None
    echo_streams: bool = False
    draws: bool = True
    named: str | None = None
    named_limit: int = 128
    bias_keys: int = 0

    def limit(self, api: Api) -> int | None:
        """The most `top_logprobs` this API gives; None where there is no fixed limit."""
        return self.completions_k if api == "completions" else self.chat_k

    def default_k(self, api: Api) -> int:
        """How many `top_logprobs` to ask for where the caller does not say."""
        return self.limit(api) or _USUAL_K


_VLLM = Dialect(
    "vllm",
    completions_k=None,  # --max-logprobs, 20 unless the server was started with another
    chat_k=None,
    prefix="ids",
    prefill=Prefill(body={"continue_final_message": True, "add_generation_prompt": False}),
    ids_out={"return_tokens_as_token_ids": True},
    # Sampling defaults come from the model's generation_config.json; a draft must be drawn from q itself.
    extra_body={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    usage_stream={"include_usage": True, "continuous_usage_stats": True},
    echo={"echo": True},
    named="logprob_token_ids",
    bias_keys=300,
)

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            "openai",
            completions_k=5,
            chat_k=20,
            prefix="ids",
            chat_length="max_completion_tokens",
            echo=None,  # refused together with log probabilities
            bias_keys=300,
        ),
        _VLLM,
        replace(_VLLM, name="host", echo_last="echo_last", echo_streams=True),  # this project's own `host`
    )
}
