"""How `host` behaves like another server: what serve/ reads, as data, one entry for each dialect.

Emulated is what a client can stumble over: caps, refusals, fields that are ignored without a word, how tokens and their
bytes are written, what stands for a missing number, how the end of a text shows, whether an answer is continued. Not
emulated: samplers that are on by default (except a penalty on repetition, which bends greedy text too), a window, rate
limits, wording of errors. Each entry is what the server's source, documentation or answers say, as in
dialects/table.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from blackbox_proxy.dialects.table import ALIASES, DIALECTS, After, Api, Telling
from blackbox_proxy.errors import InputError

BENDS: Mapping[str, Callable[[str, bytes], str]] = {
    "byte letters": lambda text, spelled: "".join(_LETTERS[byte] for byte in spelled),
    "pieces": lambda text, spelled: text.replace(" ", "▁"),
    "open boxes": lambda text, spelled: text.replace(" ", "␣"),
    "word ends": lambda text, spelled: text.replace(" ", "</w>"),
    "without a blank": lambda text, spelled: text.removeprefix(" "),
    "stripped": lambda text, spelled: text.strip(),
    "underscored": lambda text, spelled: text.replace(" ", "_"),
    "escaped": lambda text, spelled: text.replace(" ", "\\x20").replace("\n", "\\n"),
    "quoted": lambda text, spelled: json.dumps(text),
    "upper case": lambda text, spelled: text.upper(),
    "HTML": lambda text, spelled: text.replace(" ", "&nbsp;"),
    "cut short": lambda text, spelled: text[:1],
    "first letter lost": lambda text, spelled: text[1:] or text,
    "a constant": lambda text, spelled: "x",
}
"""Faults that servers have had, or could: how a token is written in place of its text. The first four can be undone."""


def _letters() -> dict[int, str]:
    """GPT-2's letter for each byte, as its tokenizer's own pieces are written."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


_LETTERS: Mapping[int, str] = _letters()

_OPENAI_FIELDS = frozenset(
    {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stream", "stop", "logprobs"}
    | {"top_logprobs", "presence_penalty", "frequency_penalty", "response_format", "tools"}
)


@dataclass(frozen=True, slots=True)
class Emulation:
    """A server's behaviour; the defaults are `host`'s own."""

    # -- limits, and fields of a request --

    completions_k: int | None = None  # the most log probabilities per token; None: the host's own limit
    chat_k: int | None = None
    scores: tuple[Api, ...] = ("completions", "chat")  # the APIs that give any; others answer without, if asked
    strict: frozenset[str] | None = None  # the only fields it takes, others are refused; None: unknown ones are ignored
    ignored: frozenset[str] = frozenset()  # fields that are dropped without a word
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # field -> values refused; (): every value
    seed: str | None = "seed"  # the name of that field
    chat_logprobs: Literal["top_logprobs", "number"] = "top_logprobs"  # "number": chat takes k in `logprobs`
    ids_in: bool = True  # prompts of token ids are taken
    # The prompt comes back with log probabilities, as text only, not at all, or `echo` with `logprobs` is refused.
    echo: Literal["scored", "text", "ignored", "refused"] = "scored"
    zero: bool = False  # `max_tokens: 0` with an echo writes one token all the same
    penalty: float = 1.0  # on repetition, where `penalty_field` is not sent
    penalty_field: str = "repeat_penalty"

    # -- chat that ends with the beginning of an answer, as [user "2+2?", assistant "It is"] --

    # What makes it go on with " 4": `continue_final_message: true` together with `add_generation_prompt: false`
    # ("asked") or on its own ("alone"), `prefix: true` in that message ("marked"), nothing at all ("trailing"). "none":
    # it cannot, and begins a new turn.
    prefill: Literal["asked", "alone", "trailing", "marked", "none"] = "asked"
    strips: bool = False  # "It is " is continued as "It is"
    repeats_prefill: bool = False  # the answer is "It is 4", not " 4"

    # -- tokens in an answer --

    columns: bool = True  # completions: `tokens`, `token_logprobs`, `top_logprobs`, `text_offset`; else as in chat
    chat_columns: bool = False  # chat: those four columns; else a list of objects
    partial: Literal["escaped", "replaced"] = "escaped"  # the first two bytes of "日": "\xe6\x97", or "\ufffd"
    special: bool = True  # special tokens are written out, as "<|endoftext|>"; else their text is ""
    bytes: Literal["true", "null", "absent", "text"] = "true"  # "text": those of the token as written, "\ufffd" too
    ids: Literal["id", "token_id"] | None = None  # the field of a candidate that has its id
    bend: str = ""  # one of `BENDS`: strings do not spell what their tokens stand for
    bends: Literal["all", "own", "listed"] = "all"  # the token that was written, its candidates, or both
    last_wins: bool = False  # of two candidates both written "\ufffd" a column keeps the last, not the likeliest
    # The token that ended the text: no entry, one with its text, one with an empty text; "asked": one with its text if
    # vLLM's fields for ids were sent, or the prompt is repeated, else none.
    end: Literal["asked", "omitted", "written", "empty"] = "asked"

    # -- numbers in an answer --

    outside_listed: bool = True  # a drawn token beyond the k joins the candidates of a column, as number k + 1
    chat_counts_own: bool = False  # in chat it joins them in place of the k-th
    outside: float | None = None  # what chat gives as its log probability; None: the real one
    lowest: float = -9999.0  # what stands for a log probability whose probability rounds to 0
    after: After = "nothing"  # what the log probabilities have been through

    # -- places --

    roots: tuple[str, ...] = ("/v1",)  # paths below which the routes lie; "{model}" is any name
    native: str | None = None  # the path of SGLang's own route, if it is there
    key_header: str | None = None  # the header that has the key; None: `authorization`
    owned_by: str = "blackbox_proxy"  # in the list of models
    telling: Telling | None = DIALECTS["host"].telling  # where it tells its tokenizer

    @property
    def most(self) -> int:
        """The most log probabilities per token of any API; 20 where there is no limit."""
        return max(20 if k is None else k for k in (self.completions_k, self.chat_k))


_EXTENSIONS = frozenset({"return_tokens_as_token_ids", "return_token_ids", "logprob_token_ids", "echo_last"})
_LOWEST_FLOAT = -3.4028234663852886e38

_OPENAI = Emulation(
    ignored=_EXTENSIONS,
    echo="refused",
    prefill="none",
    bytes="true",
    end="omitted",
    outside=-9999.0,
)

EMULATIONS: Mapping[str, Emulation] = {
    "host": Emulation(),
    "serve": Emulation(refused={"logit_bias": (), "logprob_token_ids": ()}),
    "openai": _OPENAI,
    "azure": replace(_OPENAI, roots=("/openai/deployments/{model}", "/openai/v1")),
    "vllm": Emulation(
        ignored=frozenset({"echo_last"}),
        strips=True,
        partial="replaced",
        last_wins=True,
        bytes="text",
        end="written",
        chat_counts_own=True,
    ),
    "sglang": Emulation(
        ignored=_EXTENSIONS,
        echo="text",
        prefill="alone",
        strips=True,
        partial="replaced",
        end="written",
        lowest=_LOWEST_FLOAT,
        after="temperature",
    ),
    "llama-server": Emulation(
        ignored=_EXTENSIONS,
        echo="ignored",
        prefill="trailing",
        columns=False,
        partial="replaced",
        ids="id",
        end="empty",
        special=False,
        outside_listed=False,
        lowest=_LOWEST_FLOAT,
        repeats_prefill=True,
    ),
    "llama-cpp-python": Emulation(
        ignored=_EXTENSIONS,
        ids_in=False,
        prefill="none",
        zero=True,
        penalty=1.1,
        partial="replaced",
        last_wins=True,
        bytes="null",
        end="omitted",
        special=False,
    ),
    "tgi": Emulation(
        scores=("chat",),
        ignored=_EXTENSIONS | {"logit_bias", "echo"},
        refused={"top_p": (1, 0)},
        echo="ignored",
        ids_in=False,
        prefill="trailing",
        strips=True,
        partial="replaced",
        bytes="absent",
        end="written",
        outside_listed=False,
        after="temperature",
    ),
    "together": Emulation(
        ignored=_EXTENSIONS, echo="ignored", ids_in=False, prefill="none", chat_columns=True, partial="replaced"
    ),
    "fireworks": Emulation(
        ignored=_EXTENSIONS - {"echo_last"}, prefill="none", partial="replaced", ids="token_id", end="written"
    ),
    "deepseek": Emulation(
        ignored=_EXTENSIONS | {"logit_bias"},
        echo="text",
        ids_in=False,
        prefill="marked",
        strips=True,
        partial="replaced",
        end="omitted",
        outside=-9999.0,
        roots=("/beta", "/v1"),
    ),
    "mistral": Emulation(
        scores=("chat",),
        strict=_OPENAI_FIELDS | {"random_seed", "safe_prompt", "prompt_mode", "parallel_tool_calls"},
        ids_in=False,
        prefill="marked",
        strips=True,
        partial="replaced",
        ids="token_id",
        end="omitted",
    ),
    "openrouter": Emulation(
        ignored=_EXTENSIONS | {"logit_bias", "echo"},
        echo="ignored",
        ids_in=False,
        prefill="trailing",
        strips=True,
        partial="replaced",
        end="omitted",
        roots=("/api/v1", "/v1"),
    ),
    "ollama": Emulation(
        scores=("chat",),
        ignored=_EXTENSIONS | {"logit_bias"},
        echo="ignored",
        ids_in=False,
        prefill="none",
        penalty=1.1,
        penalty_field="",
        partial="replaced",
        bytes="text",
        end="omitted",
        outside_listed=False,
    ),
    "trtllm": Emulation(
        strict=_OPENAI_FIELDS
        | {"seed", "stream_options", "logit_bias", "echo", "best_of", "suffix", "user", "top_k", "min_p"}
        | {"repetition_penalty", "return_token_ids", "max_completion_tokens", "add_special_tokens", "min_tokens"},
        ignored=_EXTENSIONS,
        echo="text",
        prefill="none",
        partial="replaced",
        bytes="text",
        end="written",
    ),
    # No dialect of its own: there is nothing to ask it for.
    "transformers-serve": Emulation(scores=(), ignored=_EXTENSIONS, echo="ignored", ids_in=False, prefill="none"),
}


def emulation_of(name: str) -> Emulation:
    """How a host behaves under this name, a dialect's. Raises InputError.

    What the dialect says about the server (limits, names of fields, routes) is taken from there.
    """
    known = DIALECTS.get(ALIASES.get(name, name))
    base = "sglang" if name == "sglang-generate" else ALIASES.get(name, name)
    if base not in EMULATIONS:
        raise InputError(f"unknown dialect {name!r}", hint=f"Known: {', '.join(sorted(EMULATIONS))}.")
    found = EMULATIONS[base]
    if known is None or base == "host":
        return found
    return replace(
        found,
        completions_k=known.completions_k,
        chat_k=known.chat_k,
        seed=known.seed,
        chat_logprobs=known.chat_logprobs,
        native="/generate" if base == "sglang" else None,
        key_header=known.key_header,
        owned_by=known.owners[0] if known.owners else base,
        telling=known.telling,
    )
