"""The page at /: served whole, loading nothing from elsewhere; and what it shows, as a client gets it (`steps`)."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import openai
import pytest
from gateways import Gateway, Pairs, gateway

from blackbox_proxy import ProxyTuner
from blackbox_proxy.analysis import measure
from blackbox_proxy.gateway.keys import Keys, new_key

PROMPT = "The mayor of New York"
FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}


def fetched(url: str, headers: dict[str, str] | None = None) -> tuple[Any, str]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
        return answer.headers, answer.read().decode()


async def test_the_page_is_served_and_loads_nothing_from_elsewhere(running: Gateway) -> None:
    for path, kind in FILES.items():
        headers, text = fetched(running.url + path)
        assert headers["content-type"] == f"{kind}; charset=utf-8"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?:|//[a-z]|@import|url\(|[\s\"'`]data:", re.sub(r"^\s*//.*$", "", text, flags=re.M))
    page = fetched(running.url + "/")[1]
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"/page.css", "/page.js"}
    assert not re.findall(r"<style|<script>|\sstyle=|\son\w+=", page)


async def test_no_text_becomes_markup() -> None:
    script = (Path(__file__).parents[2] / "blackbox_proxy" / "gateway" / "page.js").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "Storage"):
        assert way not in script


async def test_every_part_that_the_script_speaks_of_is_on_the_page() -> None:
    room = Path(__file__).parents[2] / "blackbox_proxy" / "gateway"
    page, script = ((room / name).read_text(encoding="utf-8") for name in ("page.html", "page.js"))
    known = set(re.findall(r'\bid="(\w+)"', page))
    assert set(re.findall(r"\bat\('(\w+)'\)", script)) <= known
    assert {side + part for side in ("left", "right") for part in ("", "text", "figures")} <= known
    labelled = set(re.findall(r'<label for="(\w+)"', page))
    inside = set(re.findall(r'<label[^>]*>[^<]*<(?:input|select) id="(\w+)"', page))
    assert labelled | inside == set(re.findall(r'<(?:input|select|textarea) id="(\w+)"', page))


async def test_the_list_says_what_the_page_may_ask(running: Gateway) -> None:
    found = {model["id"]: model for model in json.loads(fetched(f"{running.url}/v1/models")[1])["data"]}
    assert (found["base"]["alpha"], found["base"]["steps"]) == (None, 20)
    assert (found["tuned"]["alpha_range"], found["tuned"]["prices"]) == ([0.0, 2.0], [2.0, 1.0, 3.0])
    assert (found["half"]["alpha_range"], found["half"]["steps"], found["half"]["prices"]) == (None, 0, None)


@pytest.mark.parametrize("kind", ["completions", "chat"])
@pytest.mark.parametrize("stream", [False, True])
async def test_steps_say_how_each_token_was_chosen(
    running: Gateway, tuner: ProxyTuner, kind: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "tuned", "temperature": 0, "extra_body": {"steps": 3}, "max_tokens": 16}
    async with running.client() as client:
        if kind == "chat":
            messages: Any = [{"role": "user", "content": PROMPT}]
            answer: Any = await client.chat.completions.create(messages=messages, logprobs=True, stream=stream, **asked)
        else:
            answer = await client.completions.create(prompt=PROMPT, logprobs=0, stream=stream, **asked)
        choices: list[Any] = [c.choices[0] async for c in answer] if stream else [answer.choices[0]]
    steps = [step for c in choices if c.logprobs for step in c.logprobs.model_extra.get("steps", [])]
    prompt = PROMPT if kind == "completions" else f"User: {PROMPT}\nAssistant:"
    wanted = tuner.generate(prompt, max_tokens=16)
    places = [place for place in measure(wanted.steps) if not place.end]
    assert len(steps) == len(places)
    assert [step["changed"] for step in steps] == [place.changed for place in places]
    for name in ("q", "p", "shift"):
        told, own = [step[name] for step in steps], [getattr(place, name) for place in places]
        assert told == pytest.approx(own, abs=1e-5)
    assert sum(step["calls"] for step in steps) >= 1
    for step, one in zip(steps, wanted.steps, strict=False):
        assert 3 <= len(step["candidates"]) <= 4
        [chosen] = [c for c in step["candidates"] if c["chosen"]]
        mine = next(c for c in one.candidates if c.token.id == one.token_id)
        assert chosen["expert"] == pytest.approx(np.exp(mine.log_expert), abs=1e-5)
        assert chosen["p"] == pytest.approx(step["p"])
        assert sum(c["p"] for c in step["candidates"]) + step["others"]["p"] == pytest.approx(1.0, abs=1e-6)


async def test_the_base_has_no_expert_and_no_shift(running: Gateway) -> None:
    async with running.client() as client:
        answer = await client.completions.create(
            model="base", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=0, extra_body={"steps": 2}
        )
    steps = (answer.choices[0].logprobs.model_extra or {})["steps"]  # type: ignore[union-attr]
    assert [step["shift"] for step in steps] == pytest.approx([0.0] * 6, abs=1e-9)
    assert {c["expert"] for step in steps for c in step["candidates"]} == {None}


async def test_steps_are_refused_where_they_cannot_be_told(running: Gateway) -> None:
    refused = [
        ("tuned", 0, {"steps": 21}, "from 1 to 20, not 21"),
        ("tuned", 0, {"steps": True}, "not True"),
        ("tuned", None, {"steps": 3}, "Ask for 'logprobs'"),
        ("half", 0, {"steps": 3}, "does not tell its 'steps'"),
    ]
    async with running.client() as client:
        for model, logprobs, body, said in refused:
            with pytest.raises(openai.BadRequestError, match=said):
                await client.completions.create(model=model, prompt=PROMPT, logprobs=logprobs, extra_body=body)


def test_with_keys_the_page_is_open_and_nothing_else(
    models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str], tmp_path: Path
) -> None:
    key = new_key("ada", tmp_path / "keys.toml")
    with gateway(models, pairs, hosted(5), keys=Keys.read(tmp_path / "keys.toml")) as found:
        assert "<title>blackbox-proxy</title>" in fetched(found.url + "/")[1]
        with pytest.raises(HTTPError, match="401"):
            fetched(f"{found.url}/v1/models")
        assert fetched(f"{found.url}/v1/models", {"authorization": f"Bearer {key}"})


def test_the_page_can_be_left_out(models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str]) -> None:
    with gateway(models, pairs, hosted(5), page=False) as found:
        for path in FILES:
            with pytest.raises(HTTPError, match="404"):
                fetched(found.url + path)
