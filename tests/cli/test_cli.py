"""The command as a user meets it: text out, JSON out, and one sentence with a hint for everything that can go wrong."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blackbox_proxy import Drafting, ProxyTuner, TransformersPair
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.errors import BlackboxError, InputError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pair_options(models: dict[str, str]) -> list[str]:
    return ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]


@pytest.fixture
def api_options(hosted: Callable[[int], str], models: dict[str, str]) -> list[str]:
    return ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]


def test_text_json_and_library_agree(
    run: Run,
    pair_options: list[str],
    api_options: list[str],
    api_base: Callable[..., OpenAIBase],
    models: dict[str, str],
) -> None:
    pair = TransformersPair(models["digits-expert"], models["digits-antiexpert"], device="cpu")
    # Local drafts come and go with measured times, and calls with them.
    expected = ProxyTuner(api_base(), pair, draft=Drafting(local=False)).generate("The mayor of", max_tokens=20)
    options = [*api_options, *pair_options, "-n", "20", "--no-local-drafts"]
    status, out, _ = run("generate", "The mayor of", *options)
    assert (status, out.rstrip("\n")) == (0, expected.text.rstrip("\n"))
    status, out, _ = run("generate", "The mayor of", *options, "--json")
    record = json.loads(out)
    assert (status, record["text"]) == (0, expected.text)
    assert record["usage"]["api_calls"] == expected.usage.api_calls
    assert [step["id"] for step in record["steps"]] == [step.token_id for step in expected.steps]
    first = record["steps"][0]["candidates"][0]
    assert first["log_p"] <= 0.0
    assert {"log_q", "log_expert", "log_antiexpert", "how", "tail"} <= first.keys()


def test_the_number_of_logprobs_is_lowered_to_the_limit_that_the_server_names(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base(top_logprobs=None)
    assert base.settings.top_logprobs == 20
    generation = ProxyTuner(base, pairs("digits")).generate("The mayor of", max_tokens=4)
    assert base.settings.top_logprobs == 5
    assert (generation.usage.retries, len(generation.steps)) == (1, 4)


@pytest.mark.parametrize(
    "way", [["--draft", "3"], ["--no-stream", "--no-local-drafts", "--minimise", "cost", "--prices", "1,0.5,4"]]
)
def test_how_it_is_asked_changes_no_byte(
    way: list[str], run: Run, pair_options: list[str], api_options: list[str]
) -> None:
    asked = ["generate", "The mayor of", *api_options, *pair_options, "-n", "12"]
    assert run(*asked, *way)[1] == run(*asked)[1]


def test_prompt_from_file_and_from_standard_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair_options: list[str], models: dict[str, str]
) -> None:
    options = ["--local", "--base", models["base"], *pair_options, "-n", "8"]
    _, plain, _ = run("generate", "New York", *options)
    (tmp_path / "prompt.txt").write_text("New York")
    assert run("generate", "-f", str(tmp_path / "prompt.txt"), *options)[1] == plain
    monkeypatch.setattr("sys.stdin", open(tmp_path / "prompt.txt"))  # noqa: SIM115
    with sys.stdin:
        assert run("generate", "-", *options)[1] == plain


def test_show_prints_what_the_proxy_did(run: Run, pair_options: list[str], api_options: list[str]) -> None:
    status, out, err = run("generate", "The mayor of", *api_options, *pair_options, "-n", "12", "--show")
    assert status == 0
    assert out.strip()
    assert "changed by the proxy" in err
    assert "API calls" in err


BAD: dict[str, tuple[list[str], str]] = {
    "empty prompt": (["generate", "", "API", "PAIR"], "prompt is empty"),
    "two prompts": (["generate", "a", "-f", "b", "API", "PAIR"], "two prompts"),
    "no such file": (["generate", "-f", "nowhere.txt", "API", "PAIR"], "nowhere.txt"),
    "unreachable": (
        ["generate", "a", "--base", "x", "--base-url", "http://127.0.0.1:9/v1", "PAIR", "UNKNOWN"],
        "127.0.0.1:9",
    ),
    "no such model": (["generate", "a", "API", "--base", "other", "PAIR"], "other"),
    "k too large": (["generate", "a", "API", "--dialect", "openai", "--top-logprobs", "50", "PAIR"], "5"),
    "pair missing": (["generate", "a", "API", "--expert", "./nowhere"], "./nowhere"),
    "pair mismatched": (["generate", "a", "API", "MIXED"], "different vocabularies"),
    "prompt too long": (["generate", "x " * 3000, "API", "PAIR"], "window"),
    "alpha nan": (["generate", "a", "API", "PAIR", "--alpha", "nan"], "alpha"),
    "temperature": (["generate", "a", "API", "PAIR", "--temperature", "-1"], "temperature"),
    "top_p": (["generate", "a", "API", "PAIR", "--top-p", "0"], "--top-p"),
    "max_tokens": (["generate", "a", "API", "PAIR", "--max-tokens", "0"], "--max-tokens"),
    "tail": (["generate", "a", "API", "PAIR", "--tail", "cut"], "cut"),
    "api": (["generate", "a", "API", "PAIR", "--api", "soap"], "soap"),
    "dialect": (["generate", "a", "API", "PAIR", "--dialect", "klingon"], "klingon"),
    "rendering": (["generate", "a", "API", "PAIR", "--base-prompt", "boiled"], "boiled"),
    "tokenizer": (["generate", "a", "API", "PAIR", "--tokenizer", "./nowhere"], "nowhere"),
    "device": (["generate", "a", "API", "PAIR", "--device", "abacus"], "abacus"),
    "stop": (["generate", "a", "API", "PAIR", "--stop", ""], "stop"),
    "base folder": (["generate", "a", "--local", "--base", "./nowhere", "PAIR"], "./nowhere"),
    "draft": (["generate", "a", "API", "PAIR", "--draft", "0"], "draft"),
    "minimise": (["generate", "a", "API", "PAIR", "--minimise", "tears"], "tears"),
    "prices": (["generate", "a", "API", "PAIR", "--prices", "1,2,free"], "1,2,free"),
    "price": (["generate", "a", "API", "PAIR", "--prices", "1,2,-3"], "prices"),
    "network": (["host", "--model", "./nowhere", "--port", "0", "--first-token", "-1"], "first_token"),
    "bench": (["bench", "--base", "./nowhere"], "together"),
    "bench texts": (["bench", "--texts", "0"], "texts"),
    "host": (["host", "--model", "./nowhere", "--port", "0"], "./nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_a_hint(
    case: str, run: Run, pair_options: list[str], api_options: list[str], models: dict[str, str]
) -> None:
    arguments: list[str] = []
    for word in BAD[case][0]:
        mixed = ["--expert", models["digits-expert"], "--antiexpert", models["pieces-expert"]]
        unknown = ["--tokenizer", "none"]
        meant = {"API": api_options, "PAIR": pair_options, "MIXED": mixed, "UNKNOWN": unknown}
        arguments += meant.get(word, [word])
    status, out, err = run(*arguments)
    assert status != 0
    assert out == ""
    assert "Traceback" not in err
    error, _, hint = err.partition("\nHint: ")
    assert error.startswith("Error: ")
    assert BAD[case][1] in error
    assert hint.strip()
    assert "\n" not in error


def test_wrong_key_and_missing_logprobs(models: dict[str, str], run: Run, pair_options: list[str]) -> None:
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app

    engine = open_engine(models["base"], top_logprobs=0, served_model_name="big", device="cpu")
    with serve_in_thread(create_app(engine, api_key="right")) as url:
        at = ["generate", "a", "--base", "big", "--base-url", f"{url}/v1", "--dialect", "vllm", *pair_options]
        status, _, err = run(*at, "--api-key", "secret-but-wrong")
        assert (status, "secret" in err) == (1, False)
        assert "Hint:" in err
        status, _, err = run(*at, "--api-key", "right")
        assert status == 1
        assert "logprobs" in err
        assert "Hint:" in err


def test_nothing_is_sent_before_everything_is_checked(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = api_base()

    async def draft(*_: object, **__: object) -> None:
        raise AssertionError("a request was sent")

    monkeypatch.setattr(base, "draft", draft)
    monkeypatch.setattr(base, "stream", draft)
    tuner = ProxyTuner(base, pairs("digits"))
    bad: list[Callable[[], object]] = [
        lambda: tuner.generate(""),
        lambda: tuner.generate([]),
        lambda: tuner.generate("a", temperature=math.nan),
        lambda: tuner.generate("x " * 4000),
        lambda: tuner.generate_batch(["fine", "x " * 4000]),
        lambda: tuner.generate_batch(["fine"], concurrency=0),
        lambda: next(tuner.stream("a", stop="")),
        lambda: ProxyTuner(base, []),
        lambda: ProxyTuner(base, pairs("digits"), [1.0, 2.0]),
        lambda: ProxyTuner(base, pairs("digits"), math.inf),
        lambda: ProxyTuner(base, pairs("digits"), draft=0),
    ]
    for call in bad:
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.hint


def test_a_real_process_ends_without_a_traceback() -> None:
    options = ["--base", "x", "--expert", "y", "--temperature", "-1"]  # refused before anything heavy is loaded
    command = [sys.executable, "-m", "blackbox_proxy", "generate", "a", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --temperature: must be")
    assert "Traceback" not in done.stderr


def test_the_package_is_light_until_it_is_used() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import blackbox_proxy; spent = time.perf_counter() - start; "
        "heavy = {'torch', 'transformers', 'openai', 'numpy', 'tiktoken'} & set(sys.modules); print(spent, heavy or '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[1:] == [], "importing blackbox_proxy loads something heavy"


def test_errors_explain_themselves() -> None:
    def leaves(kind: type[BlackboxError]) -> list[type[BlackboxError]]:
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]

    assert len(leaves(BlackboxError)) > 10
    assert all(kind.__doc__ for kind in leaves(BlackboxError))


def test_example_wraps_an_api(
    hosted: Callable[[int], str],
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = str(Path(__file__).parents[2] / "examples" / "wrap_an_api.py")
    arguments = ["big", hosted(5), models["digits-expert"], models["digits-antiexpert"], "The mayor of"]
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    runpy.run_path(example, run_name="__main__")
    assert len(capsys.readouterr().out) > 20
