"""Ask real servers the same questions and keep what they answer: python tests/servers/capture.py [NAME…]

Writes captured/NAME.json for each server (all that are installed), and captured/vocabulary.json, the spelling of the
toy model that they serve. test_captured_shapes.py reads those files, so that what the parser is held to was answered
by a server and not imagined. What changes from call to call and says nothing (ids, times) is left out.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # run as a program: pytest does this by itself

from servers.install import INSTALLED  # noqa: E402
from servers.launch import MODEL, Served, running  # noqa: E402
from servers.toy_weights import make_models  # noqa: E402

from blackbox_proxy.text.spelling import from_pretrained  # noqa: E402
from blackbox_proxy.text.vocabulary import Vocabulary  # noqa: E402

FOLDER = HERE / "captured"

GOES_ON = "20 of 2000"  # greedily continued for more than four tokens
ENDS = "In Zürich the café"  # ends after a few
ENDS_AT_ONCE = "def area(r):\n    return"
MESSAGES = [{"role": "user", "content": "Who opened the café?"}]
_NOISE = ("id", "created", "timings", "system_fingerprint", "metrics", "kv_transfer_params", "ec_transfer_params")


def questions(vocabulary: Vocabulary) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, route, body. What a server does not know it refuses or ignores: that is part of what is kept."""
    part = vocabulary.id_of("東".encode()[:1])  # a token that is no whole character
    turn_end = max(vocabulary.end_ids)
    unlikely = vocabulary.id_of(b"0")
    ids = list(vocabulary.prompt_ids(GOES_ON))
    text: dict[str, Any] = {"model": MODEL, "temperature": 0, "repeat_penalty": 1.0, "max_tokens": 4, "logprobs": 3}
    as_ids = {"return_tokens_as_token_ids": True}
    route = "completions"
    yield "text", route, {**text, "prompt": GOES_ON}
    yield "text, ids out", route, {**text, **as_ids, "prompt": GOES_ON}
    yield "ids", route, {**text, **as_ids, "prompt": ids}
    yield "list", route, {**text, **as_ids, "prompt": [ids, ids[:-1]], "max_tokens": 1}
    yield "end", route, {**text, "prompt": ENDS, "max_tokens": 8}
    yield "end, ids out", route, {**text, **as_ids, "prompt": ENDS, "max_tokens": 8}
    yield "end, stream", route, {**text, "prompt": ENDS, "max_tokens": 8, "stream": True}
    yield "end at once", route, {**text, "prompt": ENDS_AT_ONCE}
    yield "end at once, stream", route, {**text, "prompt": ENDS_AT_ONCE, "stream": True}
    yield "stream", route, {**text, **as_ids, "prompt": GOES_ON, "stream": True}
    forced = {"logit_bias": {str(unlikely): 100}, "max_tokens": 2}
    yield "outside the top k", route, {**text, "prompt": GOES_ON, **forced}
    yield "outside the top k, ids out", route, {**text, **as_ids, "prompt": GOES_ON, **forced}
    yield "part of a character", route, {**text, "prompt": GOES_ON, "logit_bias": {str(part): 100}, "max_tokens": 2}
    yield (
        "part of a character, stream",
        route,
        {**text, "prompt": GOES_ON, "logit_bias": {str(part): 100}, "max_tokens": 2, "stream": True},
    )
    for name, bias in {"by text": {"a": 100}, "by a list": [[unlikely, 100]], "unknown": {"100000": 100}}.items():
        yield f"biased, {name}", route, {**text, "prompt": GOES_ON, "logit_bias": bias, "max_tokens": 1}
    written = {"grammar": 'root ::= "a👍東"', "structured_outputs": {"regex": "a👍東"}}  # llama.cpp's way, vLLM's way
    yield "characters in parts", route, {**text, "prompt": GOES_ON, **written, "max_tokens": 8}
    yield "characters in parts, ids out", route, {**text, **as_ids, "prompt": GOES_ON, **written, "max_tokens": 8}
    yield "characters in parts, stream", route, {**text, "prompt": GOES_ON, **written, "max_tokens": 8, "stream": True}
    yield "cut in a character", route, {**text, "prompt": GOES_ON, **written, "max_tokens": 2}
    yield "parts among the top k", route, {**text, "prompt": GOES_ON, "max_tokens": 1, "logprobs": 20}
    yield "echo", route, {**text, "prompt": ENDS, "max_tokens": 1, "echo": True}
    yield "echo, ids", route, {**text, **as_ids, "prompt": ids, "max_tokens": 1, "echo": True}
    yield "echo only", route, {**text, "prompt": ENDS, "max_tokens": 0, "echo": True}
    yield "named", route, {**text, **as_ids, "prompt": ids, "max_tokens": 1, "logprob_token_ids": [unlikely, turn_end]}
    yield "too many log probabilities", route, {**text, "prompt": GOES_ON, "max_tokens": 1, "logprobs": 25}
    yield "bad parameter", route, {**text, "prompt": GOES_ON, "temperature": "hot"}
    yield "too long", route, {**text, "prompt": "New York " * 400}
    yield "no such token", route, {**text, "prompt": [0, 100_000]}
    yield "no such model", route, {**text, "model": "another", "prompt": GOES_ON, "max_tokens": 1}
    yield "nothing asked", route, {"model": MODEL, "prompt": GOES_ON, "temperature": 0, "max_tokens": 1}
    talk: dict[str, Any] = {**text, "messages": MESSAGES, "logprobs": True, "top_logprobs": 3}
    route = "chat/completions"
    yield "chat", route, talk
    yield "chat, ids out", route, {**talk, **as_ids}
    yield "chat, stream", route, {**talk, "stream": True}
    yield "chat, end at once", route, {**talk, "logit_bias": {str(turn_end): 100}}
    yield "chat, part of a character", route, {**talk, "logit_bias": {str(part): 100}, "max_tokens": 2}
    begun = [*MESSAGES, {"role": "assistant", "content": "The mayor"}]
    yield "chat, begun", route, {**talk, "messages": begun}
    yield (
        "chat, continued",
        route,
        {**talk, "messages": begun, "continue_final_message": True, "add_generation_prompt": False},
    )


def ask(base_url: str, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The request and the answer: status, type, and the body, or the events of a stream."""
    request = urllib.request.Request(
        f"{base_url}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=120) as answer:
            status, kind, raw = answer.status, answer.headers.get("Content-Type"), answer.read()
    except urllib.error.HTTPError as error:
        status, kind, raw = error.code, error.headers.get("Content-Type"), error.read()
    raw = re.sub(rb'(?:/[^/" ]+)+(?=/site-packages/)', b"", raw)  # where the server is installed is nobody's business
    found: dict[str, Any] = {"request": {"route": route, **body}, "status": status, "type": kind}
    if kind and kind.startswith("text/event-stream"):
        lines = raw.decode("utf-8").splitlines()
        events = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
        found["events"] = [event if event == "[DONE]" else _without_noise(json.loads(event)) for event in events]
    else:
        found["body"] = _without_noise(json.loads(raw))
    return found


def _without_noise(body: Any) -> Any:
    return {key: value for key, value in body.items() if key not in _NOISE} if isinstance(body, dict) else body


def capture(served: Served, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a server answers to every question."""
    answers = {name: ask(served.base_url, route, body) for name, route, body in questions(vocabulary)}
    return {"server": served.kind, "version": served.version, "answers": answers}


def spelled(vocabulary: Vocabulary) -> dict[str, Any]:
    """A vocabulary as JSON: the bytes of its tokens in hexadecimal, special ones by name."""
    return {
        "tokens": [None if token is None else token.hex() for token in vocabulary.spelling],
        "special": {str(index): text for index, text in vocabulary.special.items()},
        "ends": sorted(vocabulary.end_ids),
    }


def _written(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with one answer, or one token, per line, so that a new capture can be compared with the last."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            items = ",\n".join(f"    {_json(name)}: {_json(item)}" for name, item in value.items())
            lines.append(f"  {_json(key)}: {{\n{items}\n  }}")
        else:
            lines.append(f"  {_json(key)}: {_json(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)


def main(names: Sequence[str]) -> None:
    """Capture the servers named, or all that are installed."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        vocabulary = from_pretrained(models["base"])
        _written(FOLDER / "vocabulary.json", spelled(vocabulary))
        for name in names or [name for name, there in INSTALLED.items() if there()]:
            with running(name, models, Path(folder) / f"{name}.log") as served:
                found = capture(served, vocabulary)
            _written(FOLDER / f"{name}.json", found)
            statuses = [answer["status"] for answer in found["answers"].values()]
            print(f"{name} {found['version']}: {len(statuses)} answers, {statuses.count(200)} of them 200")


if __name__ == "__main__":
    main(sys.argv[1:])
