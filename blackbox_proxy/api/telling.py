"""What a server tells of its tokenizer, in requests that cost nothing: where it is from, and how it cuts some texts.

What is sent holds nothing of this machine: the texts are the same for every server and tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping

from blackbox_proxy.api.native import below
from blackbox_proxy.dialects.guessing import by_models
from blackbox_proxy.dialects.table import LIST, Dialect, Telling
from blackbox_proxy.transport.connection import Connection
from blackbox_proxy.transport.failures import decode_body

TEXTS = (
    "The weather in New York wasn't fine; it rained 1234567890 mm — “naïve” façades, Zürich’s ÜBERMUT, I'LL DON'T…",
    "def f(xs: list[int]) -> str:\n\treturn ', '.join(str(x**2) for x in xs if x != 0)  # {}\r\n\n\n    </div>\\n&amp;",
    "東京の天気は晴れ。北京今天下雨，한국어 문장, Москва и Київ, مرحبا بالعالم, שלום עולם, नमस्ते दुनिया, Ελλάδα, ไทย",
    "👍🏽 👩\u200d💻 e\u0301 ﬁ ½ ∑∂x² \u00a0\u3000\ufeff ░▒▓ antidisestablishmentarianism 3.14159e-10",
    "<s>[INST] a </s><|endoftext|> b <|im_start|>user\nc<|im_end|> <|eot_id|><end_of_turn><bos><eos><unk>[CLS] [/INST]",
)
"""Texts in which the habits of tokenizers differ: scripts, digits, blanks, code, special tokens written out."""

_MOST_NAME = 1000  # characters


Cuts = tuple[tuple[int, ...], ...]
"""The ids of each of `TEXTS` as a prompt; none where a server does not say."""


async def telling_of(connection: Connection) -> tuple[Telling | None, object]:
    """How the server behind an unknown URL tells its tokenizer, by its list of models, and that list."""
    models = decode_body(await connection.free(LIST), connection.url)
    spoken: Dialect | None = by_models(models)
    return (None if spoken is None else spoken.telling), models


async def names_of(connection: Connection, base_url: str, model: str, telling: Telling, models: object) -> list[str]:
    """Where its tokenizer may be from. models: its list of models, if that is known. Raises BaseError."""
    if telling.route != LIST:
        body = decode_body(await connection.free(below(base_url, telling.route)), connection.url)
    else:
        body = models or decode_body(await connection.free(LIST), connection.url)
        data = body.get("data") if isinstance(body, Mapping) else None
        entries = [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []
        body = next((entry for entry in entries if entry.get("id") == model), None)
    found = body if isinstance(body, Mapping) else {}
    return [name for name in map(found.get, telling.names) if isinstance(name, str) and _may_be_name(name)]


async def cuts_of(connection: Connection, base_url: str, model: str, telling: Telling) -> Cuts:
    """How it cuts `TEXTS`. Raises BaseError where it cannot be asked."""
    cuts = []
    for text in TEXTS:
        body = {"model": model, telling.text: text, **telling.fields}
        answer = decode_body(await connection.free(below(base_url, telling.cut), body), connection.url)
        ids = answer.get("tokens") if isinstance(answer, Mapping) else None
        if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            return ()
        cuts.append(tuple(ids))
    return tuple(cuts)


def _may_be_name(name: str) -> bool:
    return bool(name.strip()) and len(name) <= _MOST_NAME and name.isprintable()
