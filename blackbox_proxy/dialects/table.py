"""What differs between "OpenAI-compatible" servers, as data.

Nothing in here runs: the requests and their readers follow these fields, and a further server is a further entry of
`DIALECTS`. What a server *answers* needs no field where the answer itself tells (both log-probability shapes, ids
printed as "token_id:17", the end of the text): entries.py recognises those from any server. guessing.py finds the entry
for a URL, emulation.py says how `host` behaves like a server, support.py prints what can be done with each.

Where it is not known what a server does, its entry says what is safe: no continuation, no given text, no claim that a
draft is drawn from the very probabilities shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Api = Literal["completions", "chat"]
After = Literal["nothing", "bias", "temperature"]

_USUAL_K = 20

CALLED = "tested against the server"
WRITTEN_HERE = "this project's own server"
SCHEMA = "from the schema, never called"
PROBED = "as probed on "  # and the day

LIST = "/models"  # the route of the list of models


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
class Telling:
    """How a server tells which tokenizer its model has, in requests that cost nothing.

    route, names: where it names a folder, hub id or file: an answer, and the fields that do, the best first. `LIST` is
    its list of models, other routes lie below its root. cut: the route there that cuts a text into ids (`tokens` of
    its answer), as a prompt is cut; text: the field that has the text; fields: further ones.
    """

    route: str
    names: tuple[str, ...]
    cut: str = "/tokenize"
    text: str = "prompt"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server."""

    name: str

    # What it has.
    completions_k: int | None  # the most `top_logprobs` of completions; None where the server sets no fixed limit
    chat_k: int | None  # the same of chat
    apis: tuple[Api, ...] = ("completions", "chat")  # those that give log probabilities
    # How a completions prefix travels where the tokenizer is known; without a tokenizer it is always text.
    prefix: Literal["ids", "text"] = "text"
    prefill: Prefill | None = None  # how a chat continues; None: it cannot, so single tokens are all it can decode
    # Fields that make completions repeat the prompt with the candidates at every token of it; None where it cannot.
    echo: Mapping[str, Any] | None = None
    echo_last: str | None = None  # the field that limits this to the last so many tokens
    echo_streams: bool = False  # it does so in a stream, too
    streams: bool = True  # log probabilities stream
    usage_stream: Mapping[str, Any] = field(default_factory=lambda: {"include_usage": True})  # `stream_options`
    named: str | None = None  # the field that holds ids whose log probabilities shall be shown
    named_limit: int = 128  # how many ids it takes
    bias_keys: int = 0  # how many tokens a `logit_bias` may name; 0 where it is not honoured
    telling: Telling | None = None  # how it tells its tokenizer; None: it does not

    # How it is asked.
    # Fields that make tokens come out as ids. Sent only where the tokenizer is known: an id alone would hide what the
    # token is, and then its text is worth more.
    ids_out: Mapping[str, Any] = field(default_factory=dict)
    ids_shown: bool = False  # ids come unasked, beside the text
    chat_length: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # chat's number of tokens to generate
    # How chat is asked for log probabilities: "top_logprobs" besides `logprobs: true`, or a "number" in `logprobs`.
    chat_logprobs: Literal["top_logprobs", "number"] = "top_logprobs"
    seed: str | None = "seed"  # what it calls the seed; None where it has none
    omit: tuple[str, ...] = ()  # fields that are usually sent and that it refuses
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # of every request, below the caller's `extra_body`
    native: str | None = None  # the route below the server's root that is asked in place of OpenAI's (native.py)

    # What its numbers mean.
    # What the log probabilities have been through: nothing (they are the model's own), a `logit_bias`, or also the
    # temperature; None where that is not known. A greedy answer has no temperature anywhere, and a draft is drawn at 1
    # or not at all, so that the model's own are shown in either case.
    shown_after: After | None = None
    draws: bool = True  # at temperature 1, top_p 1 it draws from the very probabilities it shows, and shows all of it
    # It does not show tokens that end inside a character: a bias must bring out what else could have stood there.
    hides_parts: bool = False
    shows_end: bool = True  # a text that the model ended may have a position for its end
    beyond: int = 0  # how many tokens it may write more than were asked for
    tells_parts: bool = True  # a token that ends inside a character is not written as the whole characters in it
    # The token drawn takes one of the k places of chat, so that only k - 1 candidates are shown whatever is drawn.
    chat_counts_own: bool = False

    # Where it is.
    home: str | None = None  # the URL of the one service that speaks it
    key_variable: str = "OPENAI_API_KEY"  # the environment variable with the key for it
    key_header: str | None = None  # the header that takes the key, None for the usual one
    deployment: str | None = None  # the path below the service's root, with "{model}" in it
    query: Mapping[str, str] = field(default_factory=dict)  # what such a URL needs, unless it is there
    hosts: tuple[str, ...] = ()  # host names by which it is known, and all names below them
    owners: tuple[str, ...] = ()  # what it writes as `owned_by` in its list of models
    evidence: str = SCHEMA  # what this entry rests on

    def limit(self, api: Api) -> int | None:
        """The most `top_logprobs` this API gives; None where there is no fixed limit."""
        return self.completions_k if api == "completions" else self.chat_k

    def default_k(self, api: Api) -> int:
        """How many `top_logprobs` to ask for where the caller does not say."""
        return min(self.limit(api) or _USUAL_K, _USUAL_K)

    def continues(self, api: Api) -> bool:
        """Whether text can go on from a chosen token; where it cannot, single tokens are all that can be decoded."""
        return api in self.apis and (api == "completions" or self.prefill is not None)


_OPENAI = Dialect(
    "openai",
    completions_k=5,
    chat_k=20,
    prefix="ids",
    chat_length="max_completion_tokens",
    echo=None,  # refused together with log probabilities
    shown_after="nothing",  # a bias has not been reflected since February 2024
    bias_keys=300,
    home="https://api.openai.com/v1",
    hosts=("api.openai.com",),
    owners=("openai", "openai-internal", "system"),
)

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
    shown_after="nothing",  # --logprobs-mode raw_logprobs, its default
    named="logprob_token_ids",
    bias_keys=300,
    telling=Telling(LIST, ("root", "parent"), fields={"add_special_tokens": True}),
    chat_counts_own=True,
    owners=("vllm",),
    evidence=CALLED,
)

_SGLANG = Dialect(
    "sglang",
    completions_k=None,
    chat_k=None,
    prefix="ids",
    prefill=Prefill(body={"continue_final_message": True}),
    extra_body={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},  # as for vLLM
    usage_stream={"include_usage": True, "continuous_usage_stats": True},
    echo=None,  # said to be incompatible with log probabilities; /generate has them
    shown_after="temperature",  # a greedy request is one of temperature 1 and top_k 1 there
    bias_keys=300,
    telling=Telling("/get_model_info", ("tokenizer_path", "model_path"), fields={"add_special_tokens": True}),
    owners=("sglang",),
)

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        _OPENAI,
        replace(
            _OPENAI,
            name="azure",
            home=None,
            key_variable="AZURE_OPENAI_API_KEY",
            key_header="api-key",
            deployment="/openai/deployments/{model}",
            query={"api-version": "2024-10-21"},
            hosts=("openai.azure.com",),
            owners=(),
        ),
        _VLLM,
        _SGLANG,
        replace(
            _SGLANG,
            name="sglang-generate",
            apis=("completions",),
            prefill=None,
            native="/generate",
            ids_shown=True,
            streams=False,  # it repeats all that came before in every event
            echo={"echo": True},
            echo_last="echo_last",
            named="token_ids_logprob",
            named_limit=1024,
            owners=(),
        ),
        Dialect(
            "llama-server",
            completions_k=None,
            chat_k=None,
            prefix="ids",
            prefill=Prefill(),  # a trailing message of the assistant is continued unasked
            ids_shown=True,
            # Its samplers are on by default, even at temperature 1.
            extra_body={
                "top_k": 0,
                "min_p": 0.0,
                "typical_p": 1.0,
                "repeat_penalty": 1.0,
                "dry_multiplier": 0.0,
                "xtc_probability": 0.0,
            },
            draws=False,  # of what is drawn, only whole characters are shown
            hides_parts=True,
            shown_after="nothing",
            bias_keys=300,
            telling=Telling(
                "/props", ("model_path",), text="content", fields={"add_special": True, "parse_special": True}
            ),
            owners=("llamacpp",),
            evidence=CALLED,
        ),
        Dialect(
            "llama-cpp-python",
            completions_k=None,
            chat_k=None,
            # With its repeat_penalty of 1.1 temperature 0 is not the argmax, and no prefix continues its own draft.
            extra_body={"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
            echo={"echo": True},
            shows_end=False,
            beyond=3,  # it completes the character in which the limit is reached
            tells_parts=False,
            draws=False,  # for that reason
            shown_after="nothing",
            bias_keys=300,
            owners=("me",),
            evidence=CALLED,
        ),
        Dialect(
            "tgi",
            completions_k=0,
            chat_k=5,  # --max-top-n-tokens, 5 unless the server was started with another
            apis=("chat",),
            prefill=Prefill(),  # a trailing message of the assistant is continued unasked, its last spaces cut off
            omit=("top_p",),  # must be below 1 where it is sent
            shown_after="temperature",
        ),
        Dialect(
            "together",
            completions_k=20,
            chat_k=20,
            chat_logprobs="number",
            extra_body={"repetition_penalty": 1.0},
            echo=None,  # the prompt comes back beside the choices
            draws=False,  # what top_k is where it is left out is not said
            bias_keys=300,
            home="https://api.together.xyz/v1",
            key_variable="TOGETHER_API_KEY",
            hosts=("together.xyz", "together.ai"),
        ),
        Dialect(
            "fireworks",
            completions_k=5,
            chat_k=5,
            prefix="ids",
            echo={"echo": True},
            echo_last="echo_last",
            draws=False,  # what top_k is where it is left out is not said
            shown_after="nothing",
            bias_keys=300,
            home="https://api.fireworks.ai/inference/v1",
            key_variable="FIREWORKS_API_KEY",
            hosts=("fireworks.ai",),
        ),
        Dialect(
            "deepseek",
            completions_k=20,
            chat_k=20,
            prefill=Prefill(message={"prefix": True}),
            draws=False,  # the temperature that is sent is not the one that is used
            home="https://api.deepseek.com/beta",
            key_variable="DEEPSEEK_API_KEY",
            hosts=("api.deepseek.com",),
            owners=("deepseek",),
        ),
        Dialect(
            "mistral",
            completions_k=0,
            chat_k=20,
            apis=("chat",),
            prefill=Prefill(message={"prefix": True}),
            seed="random_seed",
            usage_stream={},  # unknown fields are refused
            draws=False,
            home="https://api.mistral.ai/v1",
            key_variable="MISTRAL_API_KEY",
            hosts=("api.mistral.ai",),
            owners=("mistralai",),
        ),
        Dialect(
            "openrouter",
            completions_k=20,
            chat_k=20,
            prefill=None,  # some providers behind it continue a trailing message, others begin a new turn
            # Else a provider that knows no log probabilities may be chosen, and ignores that they were asked for.
            extra_body={"provider": {"require_parameters": True}},
            draws=False,
            home="https://openrouter.ai/api/v1",
            key_variable="OPENROUTER_API_KEY",
            hosts=("openrouter.ai",),
        ),
        Dialect(
            "ollama",
            completions_k=0,
            chat_k=20,
            apis=("chat",),
            prefill=None,  # some renderers continue a trailing message, others begin a new turn
            draws=False,  # top_k 40, and no field on this route to change it
            shown_after="nothing",
            home="http://127.0.0.1:11434/v1",
            key_variable="OLLAMA_API_KEY",
            owners=("library",),
        ),
        Dialect(
            "trtllm",
            completions_k=None,
            chat_k=None,
            prefix="ids",
            bias_keys=300,
            owners=("tensorrt_llm",),
        ),
        replace(
            _VLLM,
            name="host",
            chat_counts_own=False,
            echo_last="echo_last",
            echo_streams=True,
            owners=("blackbox_proxy",),
            evidence=WRITTEN_HERE,
        ),
        replace(
            _VLLM,
            name="serve",
            chat_counts_own=False,
            extra_body={},
            echo_last="echo_last",
            echo_streams=True,
            named=None,
            bias_keys=0,
            telling=None,
            owners=("blackbox_proxy_serve",),
            evidence=WRITTEN_HERE,
        ),
    )
}

ALIASES: Mapping[str, str] = {"openai-completions": "openai", "openai-chat": "openai", "llamacpp": "llama-server"}
"""Further names -> names of `DIALECTS`."""
