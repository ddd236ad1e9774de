"""Sent: a prompt is rendered and cut once, however often the answer to it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from api_answers import chat, entry, legacy, make_vocabulary
from api_server import Asking, Server

from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Prefix, Prompt, Rendering, Token

THE, CAT = Token(256, b" the", " the"), Token(257, b" cat", " cat")
MESSAGES: Prompt = [{"role": "system", "content": "B"}, {"role": "user", "content": "Hi"}]


def row(token: str) -> tuple[str, float, dict[str, float]]:
    return token, -0.1, {token: -0.1, "!": -3.0}


def answer(sent: dict[str, Any]) -> Any:
    if "messages" in sent:
        the = entry(" the", -0.1) | {"top_logprobs": [entry(" the", -0.1)]}
        return chat(the, the, text=" the the")
    prompt = sent["prompt"]
    before = [("Hi", None, None)] if isinstance(prompt, str) else [("?", None, None)] * (len(prompt) - 2)
    repeated: list[Any] = [*before, row(" the"), row(" cat")] if sent.get("echo") else []
    text = "".join(token for token, _, _ in repeated)
    body = legacy(*repeated, row(" the"), row(" the"), text=f"{text} the the")
    body["choices"][0]["logprobs"].pop("text_offset")
    return body


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Vocabulary, list[tuple[Prompt, Rendering]]]]:
    """A vocabulary, and every prompt that it was made to render, with the rendering."""

    def make() -> tuple[Vocabulary, list[tuple[Prompt, Rendering]]]:
        known, rendered = make_vocabulary(bos=True), list[tuple[Prompt, Rendering]]()
        plain = known._render

        def render(prompt: Any, rendering: Rendering) -> list[int]:
            rendered.append((prompt, rendering))
            return plain(prompt, rendering)

        monkeypatch.setattr(known, "_render", render)
        return known, rendered

    return make


@pytest.mark.parametrize(
    ("options", "prompt", "given", "expected"),
    [
        ({"dialect": "vllm"}, "Hi", (), [("Hi", "raw")]),
        ({"dialect": "vllm"}, "Hi", (THE, CAT), [("Hi", "raw")]),
        ({"dialect": "vllm", "rendering": "chat"}, MESSAGES, (), [(MESSAGES, "chat")]),
        ({"dialect": "vllm", "api": "chat"}, MESSAGES, (), [(MESSAGES, "chat")]),
        ({"dialect": "together"}, "Hi", (), [("Hi", "raw")]),  # to count its tokens
        ({"dialect": "together", "rendering": "chat"}, MESSAGES, (), [(MESSAGES, "chat"), ("", "raw")]),
        ({"dialect": "llama-cpp-python"}, "Hi", (THE, CAT), [("Hi", "raw")]),
    ],
)
async def test_a_prompt_is_rendered_once(
    options: dict[str, Any], prompt: Any, given: Any, expected: Any, server: Server, asking: Asking, counted: Any
) -> None:
    async def answered(sent: dict[str, Any]) -> Any:
        return answer(sent)

    server.answers = [answered]
    known, rendered = counted()
    base = asking(tokenizer=known, context=1000, **options)
    base.check(prompt, 8)
    for tokens in ((), (THE,)):
        prefix = Prefix(prompt, tokens)
        base.room(prefix)
        if given and tokens:
            break
        assert len((await base.draft(Ask(prefix, 2, given=given))).positions) == 2 + len(given)
        async with aclosing(base.stream(Ask(prefix, 2, given=given))) as parts:
            assert sum([len(part.positions) async for part in parts]) == 2 + len(given)
    assert rendered == expected
    await base.aclose()
