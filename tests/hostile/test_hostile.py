"""Whatever a server does, a text ends: in the right text, or in an error of this package, in time and in memory.

The whole table is `pytest -m hostile`; some of it is in every run. Time: what the caller allows for a request
(`max_retry_seconds`), for each that brought something to go on with, and two seconds.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from hostile_bounds import ASKED, LIMIT, bounded, right
from hostile_kinds import BAD, GOOD, PROMPT, SECRET, TEXT
from raw_server import RawServer, raw_server

from blackbox_proxy import ProxyTuner, TransformersPair
from blackbox_proxy.base.opening import open_base
from blackbox_proxy.errors import BlackboxError

KINDS = {**GOOD, **BAD}

_some = [pytest.param(name, marks=() if i % 20 == 0 else pytest.mark.hostile, id=name) for i, name in enumerate(KINDS)]


@pytest.fixture(scope="module")
def pair(models: dict[str, str]) -> TransformersPair:
    """Expert and anti-expert are one, so that the text is the base's, and still all of it is scored."""
    return TransformersPair(expert=models["digits-antiexpert"], antiexpert=models["digits-antiexpert"])


def opened(server: RawServer, **options: Any) -> Any:
    return open_base(
        "m",
        base_url=server.url,
        api_key=SECRET,
        tokenizer=None,
        timeout=0.3,
        max_attempts=2,
        max_retry_seconds=LIMIT,
        **options,
    )


@pytest.mark.parametrize("name", _some)
@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends(name: str, stream: bool, pair: TransformersPair) -> None:
    from blackbox_proxy import Drafting

    with raw_server(KINDS[name]) as server:
        base = opened(server)
        tuner = ProxyTuner(base, pair, draft=Drafting(stream=stream, local=False))
        found: BlackboxError | None = None
        text = ""
        with bounded(server):
            try:
                text = tuner.generate(PROMPT, max_tokens=ASKED).text
            except BlackboxError as error:
                found = error
        tuner.close()
    if found is not None:
        assert name not in GOOD, found
        assert str(found)
        assert SECRET not in "".join(traceback.format_exception(found)) + found.hint
    elif name in GOOD:
        assert text == TEXT
    else:
        assert right(text)


@pytest.mark.parametrize("name", _some)
def test_a_base_is_opened(name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for its tokenizer, it tells none, or there is an end to it."""
    monkeypatch.setattr("blackbox_proxy.api.tokenizer._PATIENCE", LIMIT)
    with raw_server(KINDS[name]) as server, bounded(server):
        base = open_base("m", base_url=server.url, api_key=SECRET, timeout=0.3)
        assert base.vocabulary is None
    assert SECRET not in caplog.text
