"""`tokenizer="auto"` in the commands, and what a host tells of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hosting import KEY, post
from watched import Watched

from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.text.spelling import from_pretrained

pytestmark = pytest.mark.usefixtures("probes")

PROMPT = "The mayor of the town said"


def test_commands_say_it_on_standard_error(
    host: Callable[..., Watched], models: dict[str, str], run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    server = host("host")
    base = ["--base", "big", "--base-url", server.url, "--dialect", "host", "--no-cache"]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    code, out, err = run("generate", PROMPT, *base, *pair, "--max-tokens", "4")
    assert (code, err.count("\n")) == (0, 1)
    assert models["base"] in err
    server.since()
    code, given, err = run("generate", PROMPT, *base, *pair, "--max-tokens", "4", "--tokenizer", models["base"])
    assert (code, given, err) == (0, out, "")
    assert all(path.startswith("/v1/c") for path in server.since())
    code, _, err = run("generate", PROMPT, *base, *pair, "--max-tokens", "4", "--tokenizer", "none")
    assert (code, err) == (0, "")
    # A run goes on with the tokenizer that it began with.
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    job = ["run", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out.jsonl"), *base, *pair, "--max-tokens", "2"]
    assert run(*job)[0] == 0
    assert run(*job, "--resume")[0] == 0
    code, _, err = run(*job, "--resume", "--tokenizer", "none")
    assert code == 2
    assert "other settings" in err


def test_checks_and_probes_look_for_it(
    host: Callable[..., Watched], models: dict[str, str], run: Callable[..., tuple[int, str, str]]
) -> None:
    server = host("vllm")
    base = ["--base", "big", "--base-url", server.url, "--dialect", "vllm"]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"]]
    assert run("config", "check", *base, *pair)[0] == 0
    assert server.since() == []  # it sends nothing
    code, out, _ = run("config", "check", *base, *pair, "--online")
    assert code == 0
    assert "found, with 500 tokens" in out
    _, out, _ = run("config", "check", *base, *pair, "--online", "--tokenizer", "none")
    assert "tokenizer is not known" in out
    _, out, _ = run("probe", "--model", "big", "--base-url", server.url, "--json")
    found = json.loads(out)
    assert found["tokenizer"] == models["base"]
    assert f'tokenizer="{models["base"]}"' in found["open"]


def test_a_host_tells_its_tokenizer_to_who_may_ask(
    engine: Engine, models: dict[str, str], host: Callable[..., Watched]
) -> None:
    server = host("vllm", api_key=KEY)
    url = server.url.removesuffix("/v1") + "/tokenize"
    text = json.dumps({"prompt": PROMPT}).encode()
    assert post(url, text)[0] == 401
    status, body = post(url, text, authorization=f"Bearer {KEY}")
    assert (status, tuple(body["tokens"])) == (200, from_pretrained(models["base"]).prompt_ids(PROMPT))
    for bad in (b"{", b"[]", b'{"prompt": [1]}', b'{"content": "x"}', b'{"prompt": "\\ud83d"}'):
        assert post(url, bad, authorization=f"Bearer {KEY}")[0] == 400
    status, body = post(url, json.dumps({"prompt": "x " * 2**20}).encode(), authorization=f"Bearer {KEY}")
    assert status == 400
    assert "window" in body["error"]["message"]
