"""The same servers, met by a probe and by the command line: an answer or a sentence, in time, and never a key."""

from __future__ import annotations

import io
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
from hostile_bounds import ASKED, LIMIT, bounded, right
from hostile_kinds import BAD, PROMPT, SECRET
from raw_server import raw_server

from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.probing.run import probe

pytestmark = pytest.mark.hostile


@pytest.mark.parametrize("name", [*BAD][::3])
def test_a_probe_ends(name: str) -> None:
    with raw_server(BAD[name]) as server:
        began, said = time.monotonic(), ""
        try:
            probe("m", base_url=server.url, api_key=SECRET, api="completions", timeout=0.3, max_calls=3, max_attempts=1)
        except BlackboxError as error:
            said = str(error) + error.hint
        assert SECRET not in said
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("name", [*BAD][::4])
def test_the_command_ends(name: str, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from blackbox_proxy.cli import main

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    pair = models["digits-antiexpert"]
    out, err = io.StringIO(), io.StringIO()
    with raw_server(BAD[name]) as server, redirect_stdout(out), redirect_stderr(err):
        arguments = ["generate", PROMPT, "--base", "m", "--base-url", server.url, "--dialect", "openai"]
        arguments += ["--expert", pair, "--antiexpert", pair, "--max-tokens", str(ASKED), "--no-cache"]
        arguments += ["--max-retry-seconds", str(LIMIT)]
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", *arguments])
        code = 0
        with bounded(server, beside=10.0):  # loading the pair takes its own time
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
    shown = out.getvalue() + err.getvalue()
    assert SECRET not in shown
    assert "Traceback" not in shown
    assert code in (0, 1, 2, 3), shown
    assert code or right(out.getvalue().rstrip("\n")), shown
